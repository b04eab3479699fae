"""Where the time of a run goes: the productive part, and the lost part by cause, over all starts.

Every moment between the start of a process and its end belongs to one cause. Productive are the
seconds of steps that a checkpoint keeps; those of steps that a killed run made after its last
checkpoint, and that are made again, are moved to `repeated_steps` when it is resumed. The time from
the last writing of the file to the next start is `down`: it is no part of the share, because it may
be a queue, or a night.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from train.rundir import write_json

Cause = Literal[
    "init", "compile", "data_wait", "checkpoint", "evaluation", "profile", "repeated_steps"
]

PRODUCTIVE = "productive"
_REMEMBERED = 4  # checkpoints whose time is remembered; at least those that are kept


class Goodput:
    """Charges time to causes; in the cause `init` until `stepping` is called.

    Args:
      path: the JSON file, which adds up over the starts of a run. None: another process writes it.
      clock: seconds, never set back.
      now: seconds since the epoch.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ):
        self._path, self._clock, self._now = path, clock, now
        self._cause: str = "init"
        self._mark = clock()
        content = {} if path is None else _read(path)
        self._seconds: dict[str, float] = content.get("lost_seconds", {})
        self._seconds[PRODUCTIVE] = content.get("productive_seconds", 0.0)
        self._starts = content.get("starts", 0) + 1
        self._step = content.get("step", 0)
        self._down = content.get("down_seconds", 0.0)
        if "written" in content:
            self._down += max(0.0, now() - content["written"])
        self._at_checkpoint: dict[int, float] = {
            int(step): seconds for step, seconds in content.get("at_checkpoint", {}).items()
        }

    def resumed(self, step: int) -> None:
        """Says which step the run goes on from: what came after it was made in vain."""
        productive = self._seconds[PRODUCTIVE]
        kept = self._at_checkpoint.get(step, productive) if step else 0.0
        self._add("repeated_steps", productive - kept)
        self._seconds[PRODUCTIVE] = kept
        self._at_checkpoint = {k: v for k, v in self._at_checkpoint.items() if k <= step}
        self._step = step

    def stepping(self) -> None:
        """Says that from here on, what is charged to no cause is productive."""
        self._charge()
        self._cause = PRODUCTIVE

    @contextmanager
    def lost(self, cause: Cause, *, unless: Callable[[], bool] | None = None) -> Iterator[None]:
        """Charges the time inside to a cause.

        Args:
          cause: the cause.
          unless: looked at in the end: the time was no loss, for the devices were busy.
        """
        self._charge()
        outer, self._cause = self._cause, cause
        try:
            yield
        finally:
            if unless is not None and unless():
                self._cause = outer
            self._charge()
            self._cause = outer

    def saved(self, step: int) -> None:
        """Remembers the productive time that a checkpoint keeps, and writes the file."""
        self._charge()
        self._at_checkpoint[step] = self._seconds[PRODUCTIVE]
        for old in sorted(self._at_checkpoint)[:-_REMEMBERED]:
            del self._at_checkpoint[old]
        self.write(step)

    def write(self, step: int) -> None:
        """Writes the file.

        Args:
          step: steps made.
        """
        self._charge()
        self._step = step
        if self._path is not None:
            write_json(self._path, self.summary())

    def summary(self) -> dict[str, Any]:
        """What the file holds."""
        lost = {k: v for k, v in self._seconds.items() if k != PRODUCTIVE}
        productive = self._seconds[PRODUCTIVE]
        total = productive + sum(lost.values())
        return {
            "goodput": round(productive / total, 4) if total else 0.0,
            "productive_seconds": round(productive, 3),
            "lost_seconds": {k: round(v, 3) for k, v in sorted(lost.items())},
            "down_seconds": round(self._down, 3),
            "starts": self._starts,
            "step": self._step,
            "at_checkpoint": {str(k): round(v, 3) for k, v in self._at_checkpoint.items()},
            "written": round(self._now(), 3),
        }

    def _charge(self) -> None:
        moment = self._clock()
        self._add(self._cause, moment - self._mark)
        self._mark = moment

    def _add(self, cause: str, seconds: float) -> None:
        self._seconds[cause] = self._seconds.get(cause, 0.0) + seconds


def _read(path: Path) -> dict[str, Any]:
    """What earlier starts left; a file that was damaged is begun again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
