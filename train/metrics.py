"""Metrics of a run: JSON lines in a file, other loggers, and one line of progress for people."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from train.watch.loggers import Logger

# What the names of losses on held-out data begin with.
HELDOUT = "heldout_"


class MetricsLog:
    """Writes metrics one logged step late, so that the host never waits for the step in flight.

    Args:
      path: the JSON-lines file; appended to, after lines of later steps than `start` are removed.
        None: nothing is written or shown, because another process does that.
      steps: total steps, for the progress line.
      start: step the run starts at.
      keep_evaluation: keep what was written of its evaluation.
      title: what the progress line calls the run.
      loggers: told of the same numbers, and of pictures; closed with the log.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        steps: int,
        start: int,
        title: str,
        keep_evaluation: bool = True,
        loggers: Sequence[Logger] = (),
    ):
        self._loggers = loggers
        self._file = None
        if path is not None:
            forget_after(path, start, keep_evaluation=keep_evaluation)
            self._file = path.open("a", encoding="utf-8")
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._last = (start, time.perf_counter())
        self._steps = steps
        self._title = title
        console = Console(stderr=True)
        self._progress: Progress | None = None
        if path is not None and console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=console,
            )
            self._progress.start()
            self._task = self._progress.add_task(title, total=steps, completed=start, metrics="")

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes the (still computing) metrics of `step` and writes those taken before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Writes what is pending; waits for it to be computed."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        if self._file is None:
            return
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        last_step, last_time = self._last
        now = time.perf_counter()
        speed = (step - last_step) / max(now - last_time, 1e-9)
        self._last = (step, now)
        self.write({"step": step, "steps_per_second": round(speed, 3), **values})
        shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        if self._progress is not None:
            self._progress.update(self._task, completed=step, metrics=shown)
        else:
            left = (self._steps - step) / max(speed, 1e-9)
            print(
                f"{self._title} {step}/{self._steps}  {shown}  {speed:.2f} steps/s  "
                f"{left / 60:.0f} min left",
                file=sys.stderr,
                flush=True,
            )

    def write(self, record: dict[str, Any]) -> None:
        """Appends one JSON line, with null for numbers that are not finite: JSON has no NaN.

        Args:
          record: numbers by name, `step` among them.
        """
        if self._file is None:
            return
        line = {k: v if math.isfinite(v) else None for k, v in record.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        values = {k: v for k, v in record.items() if k != "step"}
        for logger in self._loggers:
            logger.scalars(record["step"], values)

    def samples(
        self, step: int, sheet: np.ndarray | None, texts: Mapping[str, Sequence[str]]
    ) -> None:
        """Hands samples to the loggers, see `Logger.samples`."""
        for logger in self._loggers:
            logger.samples(step, sheet, texts)

    def close(self) -> None:
        """Writes what is pending, ends the progress line, and closes the loggers."""
        self.flush()
        if self._progress is not None:
            self._progress.stop()
        if self._file is not None:
            self._file.close()
        for logger in self._loggers:
            logger.close()


def forget_after(path: Path, step: int, *, keep_evaluation: bool = True) -> None:
    """Removes the lines of what is about to be made again.

    A killed run has written metrics of steps after its last checkpoint, perhaps half a line; with
    them gone the file of a resumed run is that of an uninterrupted one.

    Args:
      path: a JSON-lines file, which may be missing.
      step: last step whose lines stay.
      keep_evaluation: those of its evaluation do, too.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _stays(line, step, keep_evaluation)]
    if kept != lines:
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, path)


def _stays(line: str, last: int, keep_evaluation: bool) -> bool:
    try:
        record = json.loads(line)
        step = record["step"]
        return step < last or (step == last and (keep_evaluation or not is_evaluation(record)))
    except (ValueError, KeyError, TypeError):
        return False


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """Whether a line of the metrics file is about held-out data."""
    return any(name.startswith(HELDOUT) for name in record)


def last_step(path: Path) -> int:
    """The last step in a metrics file; 0 where there is none.

    Args:
      path: the file, which may be missing, and end in half a line.
    """
    if not path.exists():
        return 0
    step = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError, KeyError, TypeError):
            step = max(step, json.loads(line)["step"])
    return step
