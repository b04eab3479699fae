"""Where the samples of a packed step come from: what every kind of data set offers the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from train.data.packing import Kind, Sample


@dataclass(frozen=True)
class Entry:
    """What is known of a sample before it is read.

    Attributes:
      kind: its kind.
      number: its number among the samples of its kind.
      tokens: slots it takes in a row.
      pictures: pictures to understand in it.
      text_targets: answer tokens in it.
    """

    kind: Kind
    number: int
    tokens: int
    pictures: int = 0
    text_targets: int = 0


class Source(Protocol):
    """The samples of every step."""

    def plan(self, step: int) -> list[Entry]:
        """The samples of a step: a pure function of (seed, step), cheap, and alike on all hosts."""
        ...

    def load(self, step: int, entry: Entry) -> Sample | None:
        """Reads and prepares one of them, in any thread.

        It is no longer than its entry says. None: it cannot be used; its slots become padding.
        """
        ...

    def name(self, entry: Entry) -> str:
        """What logs call a sample, without reading it."""
        ...
