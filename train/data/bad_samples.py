"""Samples that turn out broken while a run reads them: counted, written down, limited."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from janus_jax.errors import RunFailed
from janus_jax.hosts import team


class TooManyBadSamples(RunFailed):
    """A run has met more broken samples than it accepts."""


@dataclass(frozen=True)
class BadSample:
    """A broken sample.

    Attributes:
      step: the step that met it; -1: known before the first.
      source: directory of its data set.
      kind: its kind.
      number: its number among the records of its kind there.
      id: its id, or where it stands if that cannot be read.
      reason: a few fixed words.
      detail: the rest.
    """

    step: int
    source: str
    kind: str
    number: int
    id: str
    reason: str
    detail: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """Tells samples apart; in every pass over the data a sample is found broken again."""
        return self.source, self.kind, self.number


class BadSamples:
    """All broken samples that a run has met, each once, in the order of the steps.

    Steps are read ahead, by threads or processes. A sample counts when the step that met it is
    taken (`settle`), so that the count, and the step at which the limit stops a run, are the same
    whenever it is repeated or resumed. A resumed run knows what the run before it wrote down.

    Args:
      limit: how many are accepted: a number, or below 1 a share of all samples; None: any number.
      total: samples of all data sets.
      path: JSONL file with a line for each; None: none is written.
    """

    def __init__(self, limit: float | None, total: int, path: Path | None = None):
        self._limit, self._total, self._path = limit, total, path
        self._most = math.inf if limit is None else limit * total if 0 < limit < 1 else limit
        self._keys: set[tuple[str, str, int]] = set()
        self._reasons: dict[str, int] = {}
        self._last: BadSample | None = None
        known: list[BadSample] = []
        if path is not None and path.exists():
            known = [bad for bad in _read(path) if self._add(bad)]
        self._among_all = self._of_all(known)

    @property
    def count(self) -> int:
        """Broken samples so far."""
        return len(self._keys)

    @property
    def reasons(self) -> dict[str, int]:
        """How many there are of each reason, most first."""
        return dict(sorted(self._reasons.items(), key=lambda item: (-item[1], item[0])))

    def settle(self, found: Iterable[BadSample]) -> None:
        """Counts what a step has met, as that step is taken.

        Raises:
          TooManyBadSamples: the limit is passed, be it by what is new or by what was known before.
        """
        new = [bad for bad in found if self._add(bad)]
        if new and self._path is not None:
            lines = "".join(json.dumps(asdict(bad), ensure_ascii=False) + "\n" for bad in new)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(lines)
        if new:
            self._among_all = self._of_all(new)
        # Not only where there is something new: the run that passed the limit has written it all
        # down, and one that goes on from there finds nothing else.
        if self._among_all > self._most:
            raise self._too_many()

    def _too_many(self) -> TooManyBadSamples:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in self.reasons.items())
        share = "" if self._most == self._limit else f"{self._limit:.3%} of {self._total}"
        last = f"; the last: {self._last.id}: {self._last.reason}" if self._last else ""
        where = f"; all are listed in {self._path}" if self._path else ""
        return TooManyBadSamples(
            f"{self._among_all} samples are broken, --max-bad-samples allows "
            f"{share or self._limit} ({reasons}){last}{where}; "
            "--resume goes on with a higher limit"
        )

    def _of_all(self, new: list[BadSample]) -> int:
        """How many all processes have met, each by itself, with these that this one has met now."""
        others = team()
        if others is None or self._path is None:
            return self.count
        # What is known before the first step, all of them know.
        more = sum(bad.step >= 0 or others.index == 0 for bad in new)
        return others.add(f"bad samples of {self._path.parent}", more)

    def _add(self, bad: BadSample) -> bool:
        if bad.key in self._keys:
            return False
        self._keys.add(bad.key)
        self._last = bad
        self._reasons[bad.reason] = self._reasons.get(bad.reason, 0) + 1
        return True


def _read(path: Path) -> list[BadSample]:
    """The lines of a file; what a kill cut off at its end is removed."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    fields: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
    return [BadSample(**line) for line in fields]
