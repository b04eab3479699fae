"""Loggers: what is in an event file, read without tensorboardX, and what wandb is told."""

import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from janus_jax.errors import InputError
from train.watch import loggers
from train.watch.config import WatchConfig
from train.watch.loggers import TensorBoard, WandB, open_loggers

SHEET = np.zeros((4, 6, 3), np.uint8)
CAPTIONS = {"prompts": ["a red heart", "a cat"]}


def events(directory) -> list[Any]:
    """All events of a directory's files, oldest file first (TFRecord framing: length and sums)."""
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            length = int.from_bytes(raw[at : at + 8], "little")
            body = raw[at + 12 : at + 12 + length]
            check = int.from_bytes(raw[at + 12 + length : at + 16 + length], "little")
            assert check == masked_crc32c(body)
            found.append(Event.FromString(body))
            at += 16 + length
    return found


def values(directory) -> dict[str, list[tuple[int, Any]]]:
    found = defaultdict(list)
    for event in events(directory):
        for value in event.summary.value:
            found[value.tag].append((event.step, value))
    return found


def test_event_files_hold_scalars_pictures_and_captions(tmp_path):
    logger = TensorBoard(tmp_path, 0)
    logger.scalars(2, {"loss": 1.5, "grad_norm": 0.5})
    logger.scalars(4, {"loss": 1.25})
    logger.samples(4, SHEET, CAPTIONS)
    logger.close()
    found = values(tmp_path)
    assert [(step, v.simple_value) for step, v in found["loss"]] == [(2, 1.5), (4, 1.25)]
    assert [(step, v.simple_value) for step, v in found["grad_norm"]] == [(2, 0.5)]
    ((step, picture),) = found["samples"]
    assert (step, picture.image.height, picture.image.width) == (4, 4, 6)
    assert picture.image.encoded_image_string.startswith(b"\x89PNG")
    ((step, text),) = found["prompts/text_summary"]
    assert (step, text.tensor.string_val) == (4, [b"- a red heart\n- a cat"])


def test_a_resumed_run_hides_the_steps_it_makes_again(tmp_path, monkeypatch):
    for start in (0, 4):
        # Names hold the time in seconds.
        monkeypatch.setattr("time.time", lambda start=start: 1e9 + start)
        logger = TensorBoard(tmp_path, start)
        logger.scalars(start + 1, {"loss": float(start)})
        logger.close()
    starts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    # TensorBoard forgets what it read of this step and later ones.
    assert starts == [5]


class Wandb(SimpleNamespace):
    """Remembers what it is told."""

    def __init__(self):
        super().__init__(
            told=[],
            Image=lambda sheet: sheet.shape,
            Table=lambda columns, data: (columns, data),
        )

    def init(self, **settings):
        self.told.append(settings)
        return SimpleNamespace(
            log=lambda values, step: self.told.append((step, values)),
            finish=lambda: self.told.append("finished"),
        )


def test_wandb_is_one_run_over_all_starts(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for _ in range(2):
        logger = WandB("janus", tmp_path, name="emoji-llm", config={"seed": 3})
        logger.scalars(2, {"loss": 1.5})
        logger.samples(2, SHEET, CAPTIONS)
        logger.close()
    first, *rest = wandb.told[:4]
    assert rest == [
        (2, {"loss": 1.5}),
        (2, {"prompts": (["text"], [["a red heart"], ["a cat"]]), "samples": (4, 6, 3)}),
        "finished",
    ]
    assert first["project"] == "janus" and first["resume"] == "allow"
    assert first["config"] == {"seed": 3} and first["name"] == "emoji-llm"
    assert wandb.told[4] == first


@pytest.mark.parametrize(
    ("watch", "package", "named"),
    [
        (WatchConfig(tensorboard=True), "tensorboardX", 'pip install -e ".[logging]"'),
        (WatchConfig(wandb="janus"), "wandb", "pip install wandb"),
    ],
)
def test_a_package_that_is_missing_is_named(watch, package, named, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"needs {package}") as error:
        open_loggers(watch, tmp_path, start=0, name="run", config={})
    assert named in error.value.fix


def test_nothing_is_imported_that_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert open_loggers(WatchConfig(), tmp_path, start=0, name="run", config={}) == []
    assert not list(tmp_path.iterdir())


def test_both_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    found = open_loggers(
        WatchConfig(tensorboard=True, wandb="janus"), tmp_path, start=0, name="run", config={}
    )
    assert [type(logger) for logger in found] == [loggers.TensorBoard, loggers.WandB]
    for logger in found:
        logger.close()
    assert (tmp_path / "tensorboard").is_dir()
