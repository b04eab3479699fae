"""Runs killed with -9 at random moments, and gone on with each time: to the bit as if never killed.

The moments are spread over the whole life of a process: its start, steps, saves (while a step's
temporary directory is there), deletions of old steps (while there is one too many), and its end.
"""

import json
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.processes import forkserver
from tests.faults.training import training
from tests.train.runs import checkpoint, metrics, params, tiny
from train.presets import PRESETS

STAGES = ("emoji-stage1", "emoji-stage2", "emoji-stage3")
KILLS = 20
STEPS = 50
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

    def start(self):
        process = forkserver().Process(
            target=training, args=(self._arguments, self._log), kwargs={"marks": self._marks}
        )
        process.start()
        return process

    def finish(self) -> None:
        """Lets a process come to the end."""
        process = self.start()
        process.join(WITHIN)
        assert process.exitcode == 0, self.said()

    def killed(self, moments: random.Random) -> bool:
        """Starts a process and kills it at a random moment; whether it was still running."""
        before = self._steps()
        wait: dict[str, Callable[[], bool]] = {
            "start": lambda: True,
            "step": lambda: self._steps() != before,
            "save": lambda: self._saving() and self._steps() != before,
            "deletion": lambda: len(self._steps()) > 2,
        }
        kind = moments.choice(["start", "step", "step", "save", "save", "save", "deletion"])
        longest = {"start": 2.0, "step": 0.2, "save": 0.02, "deletion": 0.005}[kind]
        process = self.start()
        end = time.monotonic() + WITHIN
        while process.is_alive() and not wait[kind]():
            assert time.monotonic() < end, self.said()
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, longest))
        process.kill()
        process.join(WITHIN)
        assert process.exitcode in (-signal.SIGKILL, 0), self.said()
        return process.exitcode != 0

    def said(self) -> str:
        """What the processes printed."""
        return self._log.read_text()

    def samples(self) -> dict[int, list[str]]:
        """The samples of every step that was read; each time the same."""
        found: dict[int, list[str]] = {}
        for line in (self._marks / "ids.jsonl").read_text().splitlines():
            step, ids = json.loads(line)
            assert found.setdefault(step, ids) == ids
        return found

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self._checkpoints.iterdir()]
        except FileNotFoundError:
            return []

    def _steps(self) -> set[str]:
        return {name for name in self._names() if name.isdigit()}

    def _saving(self) -> bool:
        return any("tmp" in name for name in self._names())


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
    kills = 0
    while kills < KILLS:
        kills += chain.killed(moments)
        assert not (chain.run_dir / "done").exists(), "the run is too short for so many kills"
        assert "Traceback" not in chain.said(), chain.said()
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
