"""Which samples a packed step holds: a pure function of (seed, step).

Rows are fixed, because the step is compiled for them, while lengths vary; and every step holds the
three kinds at the exact ratio, with no sample dropped, split or put off to another step. Drawing
samples evenly would then waste rows: the tokens of 140 samples vary by 2% from step to step, and
rows must hold the longest step. Packing a stream instead, with what does not fit carried on, makes
a step depend on all steps before it: a resumed run would have to replay them.

So steps are made alike. The samples of each kind are sorted by length and cut into as many strata
as the kind has samples in a step, and every step takes one sample from every stratum. All steps
then have almost the same number of tokens, and as many rows as that needs. Every stratum is walked
in a shuffled order of its own, again and again, by an index permutation that needs no state. So
step s is known without any step before it, every sample of a stratum is seen before one is seen
again, and the table of lengths is all that has to be read to list the samples and the rows of any
step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from janus_jax.errors import InputError
from train.data.packing import KINDS, Kind, fit

# So many because strata are small: with 4, some orders of 6 are 1.7 times as frequent as due.
_ROUNDS = 12


@dataclass(frozen=True, eq=False)
class LengthTable:
    """Lengths of all samples of one kind; a sample's number is its place here.

    Attributes:
      tokens: int [n], slots that each sample takes in a row.
      text_targets: int [n], answer tokens of each sample; None for generation.
    """

    tokens: np.ndarray
    text_targets: np.ndarray | None = None


class Schedule:
    """The samples of every step.

    Args:
      tables: for each kind in the mixture its lengths.
      samples: samples of each kind in a step (`TrainConfig.samples`); this is the exact ratio.
      length: T, slots of a row.
      seed: seed of the order.

    Raises:
      InputError: a kind has fewer samples than one step takes, or a sample is longer than a row.
    """

    def __init__(
        self,
        tables: Mapping[Kind, LengthTable],
        samples: Mapping[Kind, int],
        *,
        length: int,
        seed: int,
    ):
        self._tables, self._seed, self._length = dict(tables), seed, length
        self._strata: dict[Kind, list[np.ndarray]] = {}
        for kind in KINDS:
            n = samples.get(kind, 0)
            if not n:
                continue
            lengths = tables[kind].tokens if kind in tables else np.zeros(0, int)
            if len(lengths) < n:
                raise InputError(
                    f"{len(lengths)} {kind} samples", f"at least {n}, which one step takes"
                )
            (wrong,) = np.nonzero((lengths < 1) | (lengths > length))
            if len(wrong):
                raise InputError(
                    f"{kind} sample {wrong[0]} has {lengths[wrong[0]]} tokens",
                    f"1 to {length}, the length of a row",
                )
            self._strata[kind] = np.array_split(np.argsort(lengths, kind="stable"), n)

    def step(self, step: int) -> list[tuple[Kind, int]]:
        """The samples of a step, as (kind, number), in the order in which they are packed."""
        found: list[tuple[Kind, int]] = []
        for kind, strata in self._strata.items():
            sizes = np.array([len(stratum) for stratum in strata], np.uint64)
            epochs, index = np.divmod(np.uint64(step), sizes)
            key = np.full(len(strata), self._seed, np.uint64)
            for number in (np.uint64(KINDS.index(kind)), np.arange(len(strata)), epochs):
                key = _mix(key + np.asarray(number, np.uint64))
            places = shuffled(index, sizes, key).tolist()
            numbers = [int(s[i]) for s, i in zip(strata, places, strict=True)]
            found.extend((kind, number) for number in numbers)
        order = np.random.default_rng((self._seed, step)).permutation(len(found))
        return [found[i] for i in order]

    def lengths(self, step: int) -> list[int]:
        """Slots of the samples of a step, in order."""
        return [int(self._tables[kind].tokens[i]) for kind, i in self.step(step)]

    def rows(self, step: int) -> list[list[int]]:
        """The rows of a step: indices into `step(step)`, as `pack` will lay them."""
        return fit(self.lengths(step), self._length)

    def rows_needed(self, steps: Iterable[int]) -> int:
        """The largest number of rows among some steps."""
        return max(len(self.rows(step)) for step in steps)

    def text_targets(self) -> int:
        """Answer tokens that no step exceeds: the most that the strata can give together."""
        return sum(
            int(targets[stratum].max())
            for kind, strata in self._strata.items()
            if (targets := self._tables[kind].text_targets) is not None
            for stratum in strata
        )


def shuffled(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The place of an index in a random order of [0, size), without making that order.

    A Feistel network permutes the smallest square power of two that holds `size`; an index that
    comes out too large goes in again until it does not (Black and Rogaway, 2002).

    Args:
      index: uint64 [n], below `size`.
      size: uint64 [n], at least 1.
      key: uint64 [n]; another key is another order.

    Returns:
      uint64 [n]: for each size and key, a permutation over its indices.
    """
    half = (np.ceil(np.log2(size)).astype(np.uint64) + 1) // 2
    mask = (np.uint64(1) << half) - 1
    keys = [_mix(key + np.uint64(r)) for r in range(_ROUNDS)]
    place, outside = index, np.ones(len(index), bool)
    while outside.any():
        left, right = place >> half, place & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        place = np.where(outside, left << half | right, place)
        outside = place >= size
    return place


def _mix(x: np.ndarray) -> np.ndarray:
    """A step of SplitMix64 (Steele, Lea and Flood, 2014): uint64 [n] to well-mixed uint64 [n]."""
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9
    x = (x ^ x >> 27) * 0x94D049BB133111EB
    return x ^ x >> 31
