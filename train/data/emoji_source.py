"""The emoji drawings as the samples of packed steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from train.data.packing import KINDS, Conversation, Generation, Kind, Sample
from train.data.pipeline import shuffled_samples
from train.data.samples import STREAM, EmojiData, Row
from train.data.source import Entry


class EmojiSource:
    """Every step holds the exact mixture; each kind walks all records in an order of its own.

    Args:
      data: the records of a split.
      counts: samples of each kind in a step.
      codes: int32 [N, P], the records' pictures as image tokens; needed for generation.
    """

    def __init__(self, data: EmojiData, counts: Mapping[Kind, int], codes: np.ndarray | None):
        self._counts: dict[Kind, int] = {kind: counts[kind] for kind in KINDS if counts.get(kind)}
        self._codes = codes
        picks: dict[Kind, Callable[[int, np.random.Generator], Any]] = {
            "understanding": lambda i, rng: (i, data.pick_understanding(i, rng)),
            "text": lambda i, rng: (i, data.pick_text(i, rng)),
            "generation": data.pick_generation,
        }
        self._picked = {
            kind: shuffled_samples(
                range(len(data.records)), picks[kind], seed=1000 * data.config.seed + STREAM[kind]
            )
            for kind in self._counts
        }
        # A plan needs the samples themselves, which are asked for right after it.
        self._step = functools.lru_cache(maxsize=8)(self._samples)

    def plan(self, step: int) -> list[Entry]:
        """See `train.data.source.Source`."""
        return [entry for entry, _ in self._step(step)]

    def load(self, step: int, entry: Entry) -> Sample:
        """See `train.data.source.Source`."""
        return next(sample for there, sample in self._step(step) if there is entry)

    def name(self, entry: Entry) -> str:
        """See `train.data.source.Source`."""
        return f"{entry.kind}/{entry.number}"

    def _samples(self, step: int) -> list[tuple[Entry, Sample]]:
        found: list[tuple[Entry, Sample]] = []
        for kind, n in self._counts.items():
            for place in range(step * n, (step + 1) * n):
                if kind == "generation":
                    prompt, i = self._picked[kind][place]
                    assert self._codes is not None, "the trainer encodes pictures for generation"
                    drawn = Generation(f"{kind}/{i}", prompt, self._codes[i])
                    found.append((Entry(kind, i, drawn.length), drawn))
                else:
                    i, row = self._picked[kind][place]
                    talk = conversation(f"{kind}/{i}", row)
                    targets = int(talk.answer.sum())
                    found.append((Entry(kind, i, talk.length, len(talk.starts), targets), talk))
        return found


def conversation(id: str, row: Row) -> Conversation:
    """A tokenised conversation as a sample to pack."""
    return Conversation(
        id,
        row.ids,
        np.arange(len(row.ids)) >= row.prompt_length,
        None if row.pixels is None else row.pixels[None],
        tuple(start for start, _ in row.spans),
    )
