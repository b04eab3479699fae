"""What a run on somebody's own data is fitted to."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax.config import DEBUG
from janus_jax.errors import InputError
from tests import debug_model
from tests.processing.fakes import emoji_like
from tests.train.data.records.sets import generation, picture, text, understanding, write_set
from tests.train.runs import tiny
from train import rundir
from train.config import Mixture
from train.data.schedule import LengthTable, Schedule
from train.init import Origin
from train.own_data import fit, resolve, row_length, shares


def test_what_was_left_to_the_device_stays_where_a_run_goes_on_on_another(tmp_path, monkeypatch):
    asked = tiny("emoji-llm", compute_dtype="auto")
    rundir.prepare(asked, tmp_path, resume=False, overwrite=False)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    for backend in ("cpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        resolved = resolve(asked, tmp_path)
        assert resolved.compute_dtype == "float32"
        rundir.settle(tmp_path, resolved, [])
        # How it is watched may change, and changes nothing of it.
        asked = replace(asked, log_every=7)
        rundir.prepare(asked, tmp_path, resume=True, overwrite=False)
    assert rundir.read_config(tmp_path) == asked
    assert rundir.read_resolved(tmp_path) == replace(asked, compute_dtype="float32")
    rundir.prepare(asked, tmp_path, resume=False, overwrite=True)
    assert resolve(asked, tmp_path).compute_dtype == "bfloat16"


ORIGIN = Origin(DEBUG, emoji_like(), debug_model.processor(DEBUG))


def fitted(folder: Path, tmp_path: Path, **changes):
    config = tiny("finetune", data=(str(folder),), init=("emoji",), batch_size=16, **changes)
    return fit(config, ORIGIN, tmp_path)


def test_pictures_to_draw_that_are_not_encoded_are_refused(tmp_path):
    """They would be left out of every step."""
    records = [text(i) for i in range(4)] + [replace(generation(i), codes=None) for i in range(4)]
    folder = write_set(tmp_path / "set", records)
    with pytest.raises(InputError, match="its generation records have no image tokens; fix: run"):
        fitted(folder, tmp_path)


def test_a_kind_without_a_usable_sample_is_said(tmp_path, capsys):
    folder = write_set(tmp_path / "set", [*map(text, range(4)), text(4, rounds=40)])
    assert fitted(folder, tmp_path).mixture == Mixture(text=5)
    mixed = [understanding(i, images=(picture(i),)) for i in range(3)]
    folder = write_set(tmp_path / "mixed", [*mixed, text(4, rounds=40)])
    assert fitted(folder, tmp_path, length=128).mixture == Mixture(understanding=3)
    assert capsys.readouterr().err == (
        "finetune: none of the 1 text samples can be used in rows of 128; it trains without them\n"
    )


@pytest.mark.parametrize(
    ("counts", "batch", "want"),
    [
        ({"generation": 50}, 16, {"generation": 16}),
        ({"generation": 50, "understanding": 50}, 16, {"generation": 8, "understanding": 8}),
        ({"generation": 3, "understanding": 30}, 11, {"generation": 1, "understanding": 10}),
        # Every kind is in every step, however rare.
        ({"generation": 1000, "text": 1}, 4, {"generation": 3, "text": 1}),
        (
            {"generation": 1, "text": 1, "understanding": 1},
            1,
            dict.fromkeys(("generation", "text", "understanding"), 1),
        ),
        ({"generation": 2, "text": 5}, 7, {"generation": 2, "text": 5}),
    ],
)
def test_a_step_has_the_ratio_of_the_data(counts, batch, want):
    assert shares(counts, batch) == want


def test_shares_are_within_one_of_the_exact_ratio():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = dict(
            zip(
                ("understanding", "text", "generation"),
                rng.integers(1, 60, 3).tolist(),
                strict=True,
            )
        )
        batch = int(rng.integers(3, sum(n.values()) + 1))
        taken = shares(n, batch)
        assert sum(taken.values()) == batch
        assert all(1 <= taken[k] <= n[k] for k in n)
        exact = {k: Fraction(n[k] * batch, sum(n.values())) for k in n}
        assert all(abs(taken[k] - exact[k]) < 1 for k in n if min(exact.values()) >= 1)


def test_rows_are_as_long_as_leaves_few_slots_empty():
    rng = np.random.default_rng(1)
    tables = {
        "generation": LengthTable(rng.integers(70, 80, 40)),
        "understanding": LengthTable(rng.integers(90, 110, 40), np.ones(40, int)),
    }
    samples = {"generation": 8, "understanding": 8}
    length = row_length(tables, samples, 0)
    assert length % 128 == 0
    slots = {
        n: n * Schedule(tables, samples, length=n, seed=0).rows_needed(range(8))
        for n in range(128, 1537, 128)
    }
    assert slots[length] <= 1.1 * min(slots.values())
    # A row a sample would leave a third of the slots empty.
    assert slots[128] > 1.2 * slots[length]
    # Large samples alone in a row.
    assert row_length({"generation": LengthTable(np.full(9, 600))}, {"generation": 4}, 0) == 640
