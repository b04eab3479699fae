"""Batches by step number, through Grain.

A source of records, a picker that turns a record into a sample, and a collate function give a data
set in which batch k is a function of (seed, k) alone. So a resumed run starts at an offset, and the
batch of any step can be looked at without running the steps before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import grain.python as grain
import numpy as np

Record = TypeVar("Record")
Sample = TypeVar("Sample")
Batches = Callable[[int], Any]


def batched(
    records: Sequence[Record],
    pick: Callable[[Record, np.random.Generator], Sample],
    collate: Callable[[Sequence[Sample]], Any],
    *,
    batch_size: int,
    seed: int,
) -> Batches:
    """An endless, shuffled data set of batches, indexed by step.

    Args:
      records: what an epoch goes through once, in an order of its own each time.
      pick: makes a sample of a record; its generator is a function of (seed, position).
      collate: makes a batch of samples.
      batch_size: samples a batch.
      seed: seed of order and picks.

    Returns:
      `batch(step)`.
    """
    samples = (
        grain.MapDataset.source(records)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(pick)
        .batch(batch_size, batch_fn=collate)
    )
    return lambda step: samples[step]


class _Steps(Sequence[int]):
    """The step numbers [start, stop), as a source for Grain."""

    def __init__(self, start: int, stop: int):
        self._range = range(start, stop)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: Any) -> int:
        return self._range[index]


def stream(kinds: Mapping[str, Batches], start: int, stop: int) -> Iterator[dict[str, Any]]:
    """The batches of steps `start` to `stop`, made ahead of time in a background thread.

    Args:
      kinds: for each kind of data its `batch(step)`; every step holds all kinds.
      start: first step.
      stop: one past the last step.

    Yields:
      `{kind: batch}`.
    """
    steps = grain.MapDataset.source(_Steps(start, stop)).map(
        lambda step: {kind: batch(step) for kind, batch in kinds.items()}
    )
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(steps.to_iter_dataset(options))
