"""Batches by step number, through Grain.

A source of records, a picker that turns a record into a sample, and a collate function give a data
set in which batch k is a function of (seed, k) alone. So a resumed run starts at an offset, and the
batch of any step can be looked at without running the steps before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grain.python as grain
import numpy as np

Record = TypeVar("Record")
Sample = TypeVar("Sample")
Batches = Callable[[int], Any]


def shuffled_samples(
    records: Sequence[Record], pick: Callable[[Record, np.random.Generator], Sample], *, seed: int
) -> Sequence[Sample]:
    """An endless, shuffled data set of samples, indexed by place.

    Args:
      records: what an epoch goes through once, in an order of its own each time.
      pick: makes a sample of a record; its generator is a function of (seed, place).
      seed: seed of order and picks.
    """
    samples: Any = grain.MapDataset.source(records).seed(seed).shuffle().repeat()
    return samples.random_map(pick)


def batched(
    records: Sequence[Record],
    pick: Callable[[Record, np.random.Generator], Sample],
    collate: Callable[[Sequence[Sample]], Any],
    *,
    batch_size: int,
    seed: int,
) -> Batches:
    """An endless, shuffled data set of batches, indexed by step: `batch(step)`.

    Args as those of `shuffled_samples`, and:
      collate: makes a batch of samples.
      batch_size: samples a batch.
    """
    samples: Any = shuffled_samples(records, pick, seed=seed)
    batches = samples.batch(batch_size, batch_fn=collate)
    return lambda step: batches[step]
