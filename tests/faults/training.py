"""What the processes of the training's fault tests run; its imports are made once for all.

Nothing here may start a thread: the processes are forked after it was imported.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "tests.conftest" not in sys.modules:
    # In the server only: tracing is quicker without the checks, and other tests make them.
    os.environ["JANUS_JAX_TYPECHECK"] = "0"
import jax
import numpy as np
from orbax.checkpoint.path import atomicity

import tests.conftest  # noqa: F401  (devices, precision and compile cache, as in the tests)
from janus_jax.cli import main
from janus_jax.config import DEBUG
from tests.faults.disks import bind_by_permissions
from train import checkpoints, evaluation, feed, loop
from train.data import samples
from train.data.batches import PackedBatches
from train.data.emoji import load_emoji, load_pictures

# A small data set, for its pictures are encoded at every start.
RECORDS = load_emoji()[::40]
# Made once, and found in memory by all processes.
samples.emoji_tokenizer(DEBUG.llm.vocab_size)
load_pictures(tuple(e for e in RECORDS if e.split == "train"), DEBUG.image_size)


def training(
    argv: list[str], log: Path, marks: Path | None = None, at: str = "", stdout: Path | None = None
) -> None:
    """Runs `janus-jax train` and ends the process with its status.

    Args:
      argv: what follows `janus-jax train`.
      log: file that gets what is printed, after what it holds.
      marks: gets `ids.jsonl`, the samples of every batch that is read, and a file `at` once the run
        has come there.
      stdout: gets what is printed there, by default `log`.
      at: where the run waits, or what goes wrong: a key of `FAULTS`; empty for nothing.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output if stdout is None else os.open(stdout, os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(output, 2)
    jax.config.update("jax_disable_most_optimizations", True)
    samples.load_emoji = lambda: RECORDS
    if marks is not None:
        _write_ids(marks / "ids.jsonl")
    if at:
        assert marks is not None
        FAULTS[at](marks / at)
    main.main(["train", *argv])


def _write_ids(path: Path) -> None:
    """Has the samples of every batch written down when it is read."""
    read = PackedBatches.groups_of

    def recorded(self: PackedBatches, step: int, numbers: Any):
        groups = read(self, step, numbers)
        names = [self.source.name(entry) for entry in self.layout(step)[0]]
        line = json.dumps([step, names]) + "\n"
        # One write, so that a line is there whole or not at all.
        with path.open("ab", buffering=0) as file:
            file.write(line.encode())
        return groups

    PackedBatches.groups_of = recorded


def _wait(mark: Path, seconds: float = 60) -> None:
    """Says where the run is and stays there, as it would in something slow, or until told `go`."""
    mark.touch()
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (mark.parent / "go").exists():
        time.sleep(0.02)


def _in_the_data_wait_of(number: int) -> Callable[[Path], None]:
    """The batch of a step, counted from 1, does not come; the mark is set by the one before."""

    def set_up(mark: Path) -> None:
        read = PackedBatches.groups_of

        def slow(self: PackedBatches, step: int, numbers: Any):
            if step == number - 1:
                _wait(mark.with_name("reading"))
            return read(self, step, numbers)

        PackedBatches.groups_of = slow
        _mark_at_batch(number - 1, mark)

    return set_up


def _mark_at_batch(number: int, mark: Path, pause: float = 0) -> None:
    """Sets the mark when so many batches have been put on the devices."""
    place, placed = feed.PackedFeed.place, []

    def counted(self: feed.PackedFeed, read):
        placed.append(number)
        if len(placed) == number:
            mark.touch()
        time.sleep(pause)
        return place(self, read)

    feed.PackedFeed.place = counted


def _in_the_resolution(mark: Path) -> None:
    """As where files are packed and encoded."""
    loop.resolve = lambda *args: _wait(mark)


def _in_the_evaluation_of(step: int) -> Callable[[Path], None]:
    """Samples are made after the losses on held-out data are known."""

    def set_up(mark: Path) -> None:
        save_preview = evaluation.save_preview

        def slow(params: Any, origin: Any, path: Path, examples: Any):
            if int(path.name) == step:
                _wait(mark)
            return save_preview(params, origin, path, examples)

        evaluation.save_preview = slow

    return set_up


def _in_the_result(mark: Path) -> None:
    """After the last step and its evaluation."""
    loop.finish = lambda *args: _wait(mark)


def _in_the_first_compilation(mark: Path) -> None:
    """Where the compile cache has the program, compiling is over at once."""
    jax.config.update("jax_enable_compilation_cache", False)
    make = loop.make_step

    def make_step(*args, **kwargs):
        step = make(*args, **kwargs)

        def first(*args):
            mark.touch()
            return step(*args)

        return first

    loop.make_step = make_step


def _in_a_step(mark: Path) -> None:
    """Steps take half a second, most of it on the way to the devices."""
    _mark_at_batch(3, mark, pause=0.5)


def _in_the_commit_of(step: int) -> Callable[[Path], None]:
    """All files of a step are written, and its directory does not have its name yet."""

    def set_up(mark: Path) -> None:
        finalize = atomicity.AtomicRenameTemporaryPath.finalize

        async def slow(self: atomicity.AtomicRenameTemporaryPath):
            if self.get_final().name == str(step):
                _wait(mark)
            await finalize(self)

        atomicity.AtomicRenameTemporaryPath.finalize = slow

    return set_up


def _at_a_batch(number: int) -> Callable[[Path], None]:
    """A batch, counted from 1, has been read and is not put on the devices yet."""

    def set_up(mark: Path) -> None:
        place, placed = feed.PackedFeed.place, []

        def slow(self: feed.PackedFeed, read):
            placed.append(number)
            if len(placed) == number:
                _wait(mark)
            return place(self, read)

        feed.PackedFeed.place = slow

    return set_up


def _bad_numbers(steps: Callable[[int], str]) -> Callable[[Path], None]:
    """In some steps, counted from 1, the loss is "nan" or "inf", by the weights of its targets."""

    def poison(mark: Path) -> None:
        groups_of = PackedBatches.groups_of

        def poisoned(self: PackedBatches, step: int, numbers: Any):
            found = groups_of(self, step, numbers)
            if kind := steps(step + 1):
                for group in found.values():
                    weights = group["text_weights"]["text"]
                    # As large as float32 allows, so that their sum is finite and the loss's is not.
                    large = 2e38 / max(weights.sum(), 1)
                    factor = large if kind == "inf" else float("nan")
                    group["text_weights"]["text"] = weights * np.float32(factor)
            return found

        PackedBatches.groups_of = poisoned

    return poison


def _on_a_small_disk(mark: Path) -> None:
    """As a disk says that has 128 KiB free."""
    checkpoints.free_bytes = lambda path: 2**17


FAULTS: dict[str, Callable[[Path], None]] = {
    "data wait": _in_the_data_wait_of(3),
    "fifth data wait": _in_the_data_wait_of(5),
    "evaluation of step 3": _in_the_evaluation_of(3),
    "evaluation of step 6": _in_the_evaluation_of(6),
    "result": _in_the_result,
    "resolution": _in_the_resolution,
    "first compilation": _in_the_first_compilation,
    "commit of step 4": _in_the_commit_of(4),
    "third batch": _at_a_batch(3),
    "step": _in_a_step,
    "small disk": _on_a_small_disk,
    "bound by permissions": lambda mark: bind_by_permissions(),
    "NaN in step 3": _bad_numbers(lambda step: "nan" if step == 3 else ""),
    "NaN in step 3, then infinity": _bad_numbers(
        lambda step: "" if step < 3 else "nan" if step == 3 else "inf"
    ),
}
