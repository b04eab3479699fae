"""Small runs as processes of their own, and what they leave behind.

The language model's preset stands for all: its step is the cheapest.
"""

import os
import signal
import time
from pathlib import Path

from tests.faults.processes import forkserver
from tests.faults.training import training
from tests.train.runs import checkpoint, metrics
from train.metrics import is_evaluation

STEPS = 6
EVALUATED = ("--preview-every", "3")
WITHIN = 180  # seconds after which a process is taken to hang


class Job:
    """A process that trains in a run directory, with a fault if it is told so.

    Args:
      run_dir: the directory.
      flags: further arguments.
      at: where it waits, or what goes wrong: a key of `tests.faults.training.FAULTS`.
      notes: where what it prints goes; by default beside the run directory.
    """

    def __init__(self, run_dir: Path, *flags: str, at: str = "", notes: Path | None = None):
        self._marks = (notes or run_dir.parent) / f"{run_dir.name}-{time.monotonic_ns()}"
        self._marks.mkdir()
        self._mark, self._log = self._marks / at, self._marks / "log"
        argv = [
            *("emoji-llm", "--run-dir", str(run_dir), "--model", "debug", "--batch-size", "2"),
            *("--steps", str(STEPS), "--log-every", "1", "--length", "128"),
            *(() if "--checkpoint-every" in flags else ("--checkpoint-every", "4")),
            *flags,
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

    def let_go(self) -> None:
        """Has it wait no longer."""
        (self._marks / "go").touch()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process.pid is not None
        return self._process.pid

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def kill(self) -> None:
        """Ends it with -9."""
        self.send(signal.SIGKILL)
        assert self.ended() == -signal.SIGKILL

    def ended(self, within: float = WITHIN) -> int | None:
        """The exit status; None while it runs."""
        self._process.join(within)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"it runs for ever; it said:\n{self.said()}")
        return self._process.exitcode

    def refused(self, status: int = 2) -> str:
        """The one line that it ends with; fails where the status is another."""
        assert self.ended() == status, self.said()
        assert "Traceback" not in self.said(), self.said()
        last = self.said().splitlines()[-1]
        assert last.startswith("janus-jax: error: "), self.said()
        return last.removeprefix("janus-jax: error: ")

    def said(self) -> str:
        """What it printed."""
        return self._log.read_text() if self._log.exists() else ""


def assert_same(run_dir: Path, whole: Path, steps: int = STEPS) -> None:
    """Parameters, optimizer state and metrics of two runs, bit for bit."""
    found, want = checkpoint(run_dir, steps), checkpoint(whole, steps)
    assert found.keys() == want.keys()
    assert [k for k in want if found[k].tobytes() != want[k].tobytes()] == []
    # Losses on held-out data were asked for in some runs only.
    records, whole_records = metrics(run_dir), metrics(whole)
    if not any(is_evaluation(r) for r in records):
        whole_records = [r for r in whole_records if not is_evaluation(r)]
    assert records == whole_records


def steps_saved(run_dir: Path) -> list[int]:
    """The steps of the checkpoints there are; not of those being written."""
    names = [path.name for path in (run_dir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def go_on_to_the_end(run_dir: Path, whole: Path, *flags: str, notes: Path | None = None) -> str:
    """Resumes a run, compares its result with that of a whole one; what it printed."""
    job = Job(run_dir, "--resume", *flags, notes=notes)
    assert job.ended() == 0, job.said()
    assert_same(run_dir, whole)
    return job.said()
