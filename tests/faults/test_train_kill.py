"""Runs killed with -9 at random moments, and gone on with each time: to the bit as if never killed.

The moments are spread over the whole life of a process: its start, steps, saves (while a step's
temporary directory is there), and deletions of old steps (while one is there in part).
"""

import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.processes import forkserver
from tests.faults.training import training
from tests.train.runs import checkpoint, metrics, params, tiny
from train.presets import PRESETS

STAGES = ("emoji-stage1", "emoji-stage2", "emoji-stage3")
# What a process is in the midst of when it is killed.
KILLS = [*4 * ["start"], *4 * ["step"], *8 * ["save"], *4 * ["deletion"]]
STEPS = 32
# Files of every step.
OF_A_STEP = ("_CHECKPOINT_METADATA", "record/metadata", "state/_METADATA", "state/manifest.ocdbt")
WITHIN = 300  # seconds after which a process is taken to hang


def arguments(name: str, run_dir: Path, parts: Path) -> list[str]:
    """A stage on the debug model, all of whose parts come from one model directory."""
    init = [f"{entry.split('=')[0]}={parts}" for entry in PRESETS[name].init]
    return [
        *(name, "--run-dir", str(run_dir), "--resume", "--model", "debug", "--init", *init),
        *("--batch-size", str(tiny(name).batch_size), "--steps", str(STEPS), "--log-every", "1"),
        *("--checkpoint-every", "1", "--preview-every", "0", "--length", "128"),
    ]


class Chain:
    """One run, made by one process after another.

    Args:
      name: the preset.
      root: gets the run, what its processes print, and the samples they read.
      parts: the model directory that its parts come from.
    """

    def __init__(self, name: str, root: Path, parts: Path):
        root.mkdir()
        self.run_dir, self._marks, self._log = root / "run", root, root / "log"
        self._arguments = arguments(name, self.run_dir, parts)
        self._checkpoints = self.run_dir / "checkpoints"
        self.resumed, self.hits = 0, Counter()

    def start(self):
        process = forkserver().Process(
            target=training, args=(self._arguments, self._log), kwargs={"marks": self._marks}
        )
        process.start()
        return process

    def finish(self) -> None:
        """Lets a process come to the end."""
        newest, before = self.newest(), len(self.said())
        process = self.start()
        process.join(WITHIN)
        assert process.exitcode == 0, self.said()
        assert resumed(self.said()[before:]) == newest

    def killed(self, kind: str, moments: random.Random) -> None:
        """Starts a process and kills it at a random moment; counts what it was in the midst of.

        What it has gone on from must be the newest step that the kill before it has left.
        """
        newest, said = self.newest(), len(self.said())
        saving, deleting = self._saving(), self._deleting()
        there: Callable[[], bool] = {
            "start": lambda: True,
            "step": lambda: self.newest() != newest,
            "save": lambda: bool(self._saving() - saving),
            "deletion": lambda: bool(self._deleting() - deleting),
        }[kind]
        delay = moments.uniform(0, {"start": 2, "step": 0.1, "save": 0.02, "deletion": 0}[kind])
        process = self.start()
        assert process.pid is not None
        end = time.monotonic() + WITHIN
        # Looking often would take the time of the processes; not before the first save.
        while kind != "start" and not self._saving() - saving and self.newest() == newest:
            assert process.is_alive() and time.monotonic() < end, self.said()
            time.sleep(0.005)
        while True:
            assert process.is_alive() and time.monotonic() < end, self.said()
            if there():
                time.sleep(delay)
                # Held, so that what is seen is what the kill hits.
                os.kill(process.pid, signal.SIGSTOP)
                if there():
                    break
                os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.0003)
        process.kill()
        process.join(WITHIN)
        assert process.exitcode == -signal.SIGKILL, self.said()
        found = resumed(self.said()[said:])
        # Killed early, it may not have come to the line.
        assert found == newest or (kind == "start" and found is None), (kind, found, newest)
        self.resumed += found is not None
        self.hits["save"] += bool(self._saving() - saving)
        self.hits["deletion"] += bool(self._deleting() - deleting)

    def said(self) -> str:
        """What the processes printed."""
        return self._log.read_text() if self._log.exists() else ""

    def samples(self) -> dict[int, list[str]]:
        """The samples of every step that was read; each time the same."""
        found: dict[int, list[str]] = {}
        for line in (self._marks / "ids.jsonl").read_text().splitlines():
            step, ids = json.loads(line)
            assert found.setdefault(step, ids) == ids
        return found

    def newest(self) -> int | None:
        """The newest committed step."""
        return max((int(name) for name in self._names() if name.isdigit()), default=None)

    def _names(self) -> set[str]:
        try:
            return {path.name for path in self._checkpoints.iterdir()}
        except FileNotFoundError:
            return set()

    def _saving(self) -> set[str]:
        """Steps that are being written, or were when a process was killed."""
        return {name for name in self._names() if ".orbax-checkpoint-tmp" in name}

    def _deleting(self) -> set[str]:
        """Steps that are there in part: they are being deleted, or were."""
        steps = {name for name in self._names() if name.isdigit()}
        return {
            step
            for step in steps
            if not all((self._checkpoints / step / file).exists() for file in OF_A_STEP)
        }


def resumed(said: str) -> int | None:
    """The step that a process says it went on from; None: it began anew, or has said nothing."""
    steps = re.findall(r"resumed from step (\d+), saved ", said)
    assert len(steps) <= 1, said
    return int(steps[0]) if steps else None


def assert_same(found: Chain, want: Chain) -> None:
    for a, b in (
        (checkpoint(found.run_dir, STEPS), checkpoint(want.run_dir, STEPS)),
        (params(found.run_dir), params(want.run_dir)),
    ):
        assert a.keys() == b.keys()
        assert [k for k in b if a[k].tobytes() != b[k].tobytes()] == []
    assert metrics(found.run_dir) == metrics(want.run_dir)
    assert found.samples() == want.samples() and set(want.samples()) == set(range(STEPS))
    assert (found.run_dir / "done").read_text() == (want.run_dir / "done").read_text()


def kill_and_compare(name: str, root: Path, parts: Path) -> None:
    whole, chain = Chain(name, root / "whole", parts), Chain(name, root / "killed", parts)
    whole.finish()
    moments = random.Random(name)
    assert len(KILLS) == 20
    for kind in moments.sample(KILLS, len(KILLS)):
        chain.killed(kind, moments)
        assert not (chain.run_dir / "done").exists(), "the run is too short for so many kills"
        assert "Traceback" not in chain.said(), chain.said()
    assert chain.hits["save"] >= 4 and chain.hits["deletion"] >= 2, chain.hits
    assert chain.resumed >= 8
    chain.finish()
    # The newest two, and nothing that a killed save left.
    assert sorted(p.name for p in (chain.run_dir / "checkpoints").iterdir()) == [
        *(str(STEPS - 1), str(STEPS))
    ]
    assert_same(chain, whole)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute and a half where nothing else runs
def test_kill_9_in_saves_deletions_and_steps_20_times_is_bit_exact_in_all_stages(
    debug_dir, tmp_path
):
    """The stages at the same time, for each process waits for its disk now and then."""
    failures: dict[str, BaseException] = {}

    def work(name: str) -> None:
        try:
            kill_and_compare(name, tmp_path / name, debug_dir)
        except BaseException as error:
            failures[name] = error

    threads = []
    for name in STAGES:
        (tmp_path / name).mkdir()
        threads.append(threading.Thread(target=work, args=(name,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    for name, error in failures.items():
        raise AssertionError(name) from error
