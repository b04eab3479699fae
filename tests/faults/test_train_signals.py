"""Real signals to real training processes, wherever they are; and two processes on one run.

The language model's preset stands for all: its step is the cheapest.
"""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.faults.processes import forkserver
from tests.faults.training import training
from tests.train.runs import checkpoint, metrics

STEPS = 6
WITHIN = 180  # seconds after which a process is taken to hang
AT_ONCE = 30  # seconds that a scheduler waits between SIGTERM and SIGKILL


class Job:
    """A process that trains in a run directory, and waits somewhere if it is told so.

    Args:
      run_dir: the directory.
      flags: further arguments.
      at: where it waits, a key of `tests.faults.training.WAITS`.
    """

    def __init__(self, run_dir: Path, *flags: str, at: str = ""):
        self._marks = run_dir.parent / f"{run_dir.name}-{time.monotonic_ns()}"
        self._marks.mkdir()
        self._mark, self._log = self._marks / at, self._marks / "log"
        argv = [
            *("emoji-llm", "--run-dir", str(run_dir), "--model", "debug", "--batch-size", "2"),
            *("--steps", str(STEPS), "--log-every", "1", "--checkpoint-every", "4"),
            *("--length", "128", *flags),
        ]
        self._process = forkserver().Process(
            target=training, args=(argv, self._log), kwargs={"marks": self._marks, "at": at}
        )
        self._process.start()

    def come_there(self) -> None:
        """Waits until the process is where it shall be stopped."""
        end = time.monotonic() + WITHIN
        while not self._mark.exists():
            assert self._process.is_alive() and time.monotonic() < end, self.said()
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def ended(self, within: float = WITHIN) -> int | None:
        """The exit status; None while it runs."""
        self._process.join(within)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"it runs for ever; it said:\n{self.said()}")
        return self._process.exitcode

    def said(self) -> str:
        """What it printed."""
        return self._log.read_text() if self._log.exists() else ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    job = Job(run_dir)
    assert job.ended() == 0, job.said()
    return run_dir


def assert_same(run_dir: Path, whole: Path) -> None:
    found, want = checkpoint(run_dir, STEPS), checkpoint(whole, STEPS)
    assert found.keys() == want.keys()
    assert [k for k in want if found[k].tobytes() != want[k].tobytes()] == []
    # Losses on held-out data were asked for in some runs only.
    steps = [r for r in metrics(run_dir) if "loss" in r]
    assert steps == metrics(whole)


def steps_saved(run_dir: Path) -> list[int]:
    return sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir())


def go_on_to_the_end(run_dir: Path, whole: Path, *flags: str) -> str:
    """What the process that goes on says."""
    job = Job(run_dir, "--resume", *flags)
    assert job.ended() == 0, job.said()
    assert_same(run_dir, whole)
    return job.said()


@pytest.mark.parametrize(
    ("at", "flags", "saved"),
    [
        ("step", (), None),
        ("data wait", (), 2),
        ("evaluation", ("--preview-every", "3"), 3),
    ],
)
def test_sigterm_in_a_step_an_evaluation_or_a_data_wait_saves_and_exits_75(
    at, flags, saved, whole, tmp_path
):
    run_dir = tmp_path / "run"
    job = Job(run_dir, *flags, at=at)
    job.come_there()
    job.send(signal.SIGTERM)
    assert job.ended(AT_ONCE) == 75, job.said()
    stopped = re.search(r"emoji-llm: stopped and saved at step (\d)\n", job.said())
    assert stopped and "Traceback" not in job.said(), job.said()
    step = int(stopped[1])
    assert steps_saved(run_dir) == [step] and step == (saved or step)
    said = go_on_to_the_end(run_dir, whole, *(("--preview-every", "3") if flags else ()))
    assert f"resumed from step {step}, saved 20" in said
    assert f"next sample {2 * step}" in said


def test_sigterm_in_the_first_compilation_exits_75_at_once(whole, tmp_path):
    run_dir = tmp_path / "run"
    job = Job(run_dir, at="first compilation")
    job.come_there()
    time.sleep(0.3)
    began = time.monotonic()
    job.send(signal.SIGTERM)
    assert job.ended(AT_ONCE) == 75, job.said()
    # It does not wait for the compiler, which takes longer.
    assert time.monotonic() - began < 10
    assert "stopped before the first step; nothing to save\n" in job.said()
    assert steps_saved(run_dir) == []
    go_on_to_the_end(run_dir, whole)


def test_a_second_signal_aborts_fast_with_nothing_half_visible(whole, tmp_path):
    run_dir = tmp_path / "run"
    job = Job(run_dir, at="save")
    job.come_there()
    job.send(signal.SIGTERM)
    time.sleep(0.5)
    began = time.monotonic()
    job.send(signal.SIGTERM)
    assert job.ended(AT_ONCE) == 128 + signal.SIGTERM, job.said()
    assert time.monotonic() - began < 10
    assert steps_saved(run_dir) == []
    go_on_to_the_end(run_dir, whole)


def test_two_jobs_on_one_run_directory_the_second_is_refused(whole, tmp_path):
    run_dir = tmp_path / "run"
    first = Job(run_dir, at="data wait")
    first.come_there()
    second = Job(run_dir, "--resume")
    assert second.ended() == 2
    assert (
        second.said()
        .splitlines()[-1]
        .startswith(f"janus-jax: error: --run-dir {run_dir} is in use by another process")
    )
    assert "Traceback" not in second.said()
    # The first one has not noticed; killed, it leaves the directory to others.
    first.send(signal.SIGKILL)
    assert first.ended() == -signal.SIGKILL
    go_on_to_the_end(run_dir, whole)
