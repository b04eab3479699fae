"""One run with everything that can watch it."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.train.runs import metrics, tiny
from tests.train.watch.test_loggers import values
from train.loop import run
from train.watch.config import ProfileConfig, WatchConfig

STEPS = 4
CONFIG = tiny(
    "emoji-vq",
    steps=STEPS,
    checkpoint_every=2,
    preview_every=STEPS,
    watch=WatchConfig(tensorboard=True, watchdog_seconds=600),
    profile=ProfileConfig("2:3"),
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("watched") / "run"
    assert run(CONFIG, directory, resume=False, overwrite=False) == 0
    return directory


def test_tensorboard_has_the_metrics_the_sample_pictures_and_their_names(run_dir):
    found = values(run_dir / "tensorboard")
    records = metrics(run_dir)
    written = {(r["step"], name): value for r in records for name, value in r.items()}
    shown = {
        (step, name): v.simple_value
        for name, events in found.items()
        for step, v in events
        if v.WhichOneof("value") == "simple_value"
    }
    for name in ("loss", "grad_norm", "skipped"):
        for step in range(1, STEPS + 1):
            assert shown[step, name] == pytest.approx(written[step, name], rel=1e-6)
    ((step, picture),) = found["samples"]
    assert step == STEPS and picture.image.encoded_image_string.startswith(b"\x89PNG")
    ((step, text),) = found["heldout names/text_summary"]
    names = text.tensor.string_val[0].decode().splitlines()
    assert step == STEPS and len(names) == 16 and all(name.startswith("- ") for name in names)


def test_the_trace_of_the_profiled_steps_is_there(run_dir):
    (trace,) = (run_dir / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size


def test_goodput_accounts_for_the_whole_run(run_dir):
    found = json.loads((run_dir / "goodput.json").read_text())
    assert (found["starts"], found["step"], found["down_seconds"]) == (1, STEPS, 0)
    assert set(found["at_checkpoint"]) == {"2", "4"}
    lost = found["lost_seconds"]
    assert {"init", "compile", "checkpoint", "evaluation"} <= lost.keys()
    assert "repeated_steps" in lost and lost["repeated_steps"] == 0
    assert all(lost[cause] > 0 for cause in ("init", "compile", "checkpoint", "evaluation"))
    total = found["productive_seconds"] + sum(lost.values())
    assert found["goodput"] == pytest.approx(found["productive_seconds"] / total, abs=1e-3)


def test_a_watched_run_ends_where_an_unwatched_one_does(run_dir, tmp_path):
    plain = dataclasses.replace(
        CONFIG, watch=WatchConfig(), profile=ProfileConfig(), preview_every=0
    )
    assert run(plain, tmp_path, resume=False, overwrite=False) == 0
    assert not (tmp_path / "tensorboard").exists() and not (tmp_path / "profile").exists()
    steps = [r for r in metrics(run_dir) if "loss" in r]
    assert metrics(tmp_path) == steps
