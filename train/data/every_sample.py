"""Held-out samples, each measured exactly once, however few there are."""

from __future__ import annotations

from train.data.packing import Sample
from train.data.record_source import RecordSource
from train.data.source import Entry

# Evenly spread over a larger data set: a mean of so many moves by a few thousandths.
MOST = 2048


class EverySample:
    """The samples of a source in their order, so many in each step; a `Source`.

    Args:
      source: where they are read.
      at_once: samples of a step.

    Attributes:
      steps: how many steps hold them all; later ones are empty.
    """

    def __init__(self, source: RecordSource, at_once: int):
        entries = source.entries()
        stride = max(-(-len(entries) // MOST), 1)
        self._source, self._entries, self._at_once = source, entries[::stride], at_once
        self.steps = -(-len(self._entries) // at_once)

    def plan(self, step: int) -> list[Entry]:
        """See `train.data.source.Source`."""
        return self._entries[step * self._at_once : (step + 1) * self._at_once]

    def load(self, step: int, entry: Entry) -> Sample | None:
        """See `train.data.source.Source`; a broken sample is left out."""
        return self._source.read(entry)

    def name(self, entry: Entry) -> str:
        """See `train.data.source.Source`."""
        return self._source.name(entry)
