"""Runs from start to end, stopped and gone on with: to the bit what they would have been.

The language model's preset stands for all: its step is the cheapest. All presets run in
`test_stages`; real processes are stopped, killed and gone on with in `tests/faults`.
"""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.functional import flat_params
from tests.train.runs import checkpoint, metrics, params, tiny
from train import loop, rundir
from train.cli import run_recipe
from train.config import OptimizerConfig
from train.loop import run

STEPS = 6
CONFIG = tiny("emoji-llm", steps=STEPS, checkpoint_every=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert run(CONFIG, run_dir, resume=False, overwrite=False) == 0
    return run_dir


def assert_same(run_dir: Path, whole: Path) -> None:
    """Parameters, optimizer state, what is handed on, and metrics: bit for bit."""
    for found, want in (
        (checkpoint(run_dir, STEPS), checkpoint(whole, STEPS)),
        (params(run_dir), params(whole)),
    ):
        assert found.keys() == want.keys()
        different = [k for k in want if not np.array_equal(found[k], want[k])]
        assert different == []
    assert metrics(run_dir) == metrics(whole)
    assert (run_dir / "done").read_text() == (whole / "done").read_text()


def before_step(monkeypatch, step: int, act) -> None:
    """Calls `act` when the batch of `step` (counted from 1) is asked for."""
    batches_of = loop.prefetch

    def stream(batch, start, stop, **how):
        for number, found in enumerate(batches_of(batch, start, stop, **how), start + 1):
            if number == step:
                act()
            yield found

    monkeypatch.setattr(loop, "prefetch", stream)


def test_a_run_leaves_metrics_checkpoints_parts_and_done(whole):
    records = metrics(whole)
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    names = {"step", "loss", "text_loss", "text_tokens", "grad_norm", "skipped"}
    assert all(set(r) == names for r in records)
    assert records[0]["loss"] == pytest.approx(np.log(2048), rel=0.2)
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["4", "6"]
    assert {path.split("/")[0] for path in params(whole)} == {"llm"}
    assert not (whole / "model").exists() and not (whole / "previews").exists()
    assert rundir.read_json(whole / "config.json")["optimizer"]["learning_rate"] == 1e-3


@pytest.mark.parametrize("step", [3, 2], ids=["between checkpoints", "at a checkpoint"])
def test_sigterm_saves_the_step_and_the_rest_is_bit_equal(monkeypatch, tmp_path, whole, step):
    with monkeypatch.context() as patch:
        before_step(patch, step + 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(CONFIG, tmp_path, resume=False, overwrite=False) == 75
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == step
    assert not rundir.is_finished(tmp_path)
    assert run(CONFIG, tmp_path, resume=True, overwrite=False) == 0
    assert_same(tmp_path, whole)


def test_a_crash_goes_back_to_the_last_checkpoint_and_the_rest_is_bit_equal(
    monkeypatch, tmp_path, whole
):
    def crash():
        raise MemoryError

    with monkeypatch.context() as patch:
        before_step(patch, 6, crash)
        with pytest.raises(MemoryError):
            run(CONFIG, tmp_path, resume=False, overwrite=False)
    assert [r["step"] for r in metrics(tmp_path)] == [1, 2, 3, 4, 5]
    assert run(CONFIG, tmp_path, resume=True, overwrite=False) == 0
    assert_same(tmp_path, whole)


def test_a_run_killed_before_its_result_makes_only_that(monkeypatch, tmp_path, whole):
    def fail(*args):
        raise InputError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_params", fail)
        with pytest.raises(InputError, match="no space left"):
            run(CONFIG, tmp_path, resume=False, overwrite=False)
    # `done` comes last, so what is not whole is not taken for finished.
    assert not rundir.is_finished(tmp_path)
    assert run(CONFIG, tmp_path, resume=True, overwrite=False) == 0
    assert_same(tmp_path, whole)


def nothing(*args, **kwargs):
    raise AssertionError("this must not be reached")


def test_a_finished_run_is_left_alone(monkeypatch, whole, capsys):
    monkeypatch.setattr(loop, "make_task", nothing)
    assert run(CONFIG, whole, resume=True, overwrite=False) == 0
    assert "already done" in capsys.readouterr().err


def test_a_run_is_not_run_over_without_a_flag(monkeypatch, whole):
    monkeypatch.setattr(loop, "make_task", nothing)
    with pytest.raises(InputError) as error:
        run(CONFIG, whole, resume=False, overwrite=False)
    assert "--resume" in error.value.fix and "--overwrite" in error.value.fix


def test_another_config_is_refused_setting_by_setting(monkeypatch, whole):
    monkeypatch.setattr(loop, "make_task", nothing)
    optimizer = dataclasses.replace(CONFIG.optimizer, learning_rate=2e-3)
    other = dataclasses.replace(CONFIG, optimizer=optimizer, seed=5)
    with pytest.raises(InputError) as error:
        run(other, whole, resume=True, overwrite=False)
    assert "(optimizer.learning_rate: 0.001 there, 0.002 here; seed: 0 there, 5 here)" in str(
        error.value
    )


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(InputError, match="exclude each other"):
        run(CONFIG, tmp_path / "run", resume=True, overwrite=True)
    with pytest.raises(InputError, match="--fall-back goes with --resume"):
        run(CONFIG, tmp_path / "run", resume=False, overwrite=False, fall_back=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("init", "named"),
    [
        (("llm=never-made",), "holds no finished run and no model"),
        (("llm=run", "vision=run"), "--init vision=run: that run has only llm"),
    ],
)
def test_missing_initial_parts_are_named_before_anything_is_made(monkeypatch, whole, init, named):
    monkeypatch.setattr(loop, "create_params", nothing)
    config = dataclasses.replace(CONFIG, name="next", init=init)
    with pytest.raises(InputError, match=named):
        run(config, whole.parent / "next", resume=False, overwrite=True)


def test_stage_1_starts_from_a_model_directory(debug_dir, debug_model, tmp_path):
    """As `janus-jax assemble` writes one: what is trained is new, the rest is kept to the bit."""
    init = tuple(f"{part}={debug_dir}" for part in ("llm", "vision", "vq"))
    config = tiny("emoji-stage1", steps=1, preview_every=0, init=init)
    assert run(config, tmp_path / "run", resume=False, overwrite=False) == 0
    found, given = params(tmp_path / "run"), flat_params(debug_model.params)
    assert found.keys() == given.keys()
    for path, array in found.items():
        kept = path.split("/")[0] in ("llm", "vision", "vq")
        assert np.array_equal(array, given[path]) == kept, path


def test_a_recipe_made_before_is_skipped_run_by_run(monkeypatch, recipe, capsys):
    monkeypatch.setattr(loop, "make_task", nothing)
    assert run_recipe(recipe.runs, recipe.root, overwrite=False) == 0
    err = capsys.readouterr().err
    assert [line.split(":")[0] for line in err.splitlines() if "already done" in line] == [
        config.name for config in recipe.runs
    ]
    assert str(recipe.root / "emoji-stage3" / "model") in err


def test_a_recipe_stops_with_the_run_that_is_stopped(monkeypatch, tmp_path):
    calls = []

    def stopped(config, run_dir, *, resume, overwrite, fall_back):
        calls.append((config.name, run_dir, resume, overwrite))
        return 75 if len(calls) == 2 else 0

    monkeypatch.setattr(loop, "run", stopped)
    (tmp_path / "emoji-vq").mkdir()
    (tmp_path / "emoji-vq" / "config.json").write_text("{}")
    runs = (tiny("emoji-vq"), tiny("emoji-siglip"), tiny("emoji-llm"))
    assert run_recipe(runs, tmp_path, overwrite=False) == 75
    assert calls == [
        ("emoji-vq", tmp_path / "emoji-vq", True, False),
        ("emoji-siglip", tmp_path / "emoji-siglip", False, False),
    ]


def test_a_stop_that_comes_with_the_last_step_keeps_a_recipe_from_going_on(monkeypatch, tmp_path):
    """The run itself is done; whoever asked wants the process to end."""
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(), steps=1)
    save = loop.save_params

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return save(*args)

    monkeypatch.setattr(loop, "save_params", signalled)
    assert run_recipe((config, config), tmp_path, overwrite=False) == 75
    assert rundir.is_finished(tmp_path / "emoji-llm")
