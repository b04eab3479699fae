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

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from janus_jax.errors import InputError
from train.data.mixture import Shares
from train.data.packing import KINDS, Kind, fit

# So many because strata are small: with 4, some orders of 6 are 1.7 times as frequent as due.
_ROUNDS = 12


@dataclass(frozen=True, eq=False)
class LengthTable:
    """Lengths of all samples of one kind; a sample's number is its place here.

    Attributes:
      tokens: int [n], slots that each sample takes in a row; 0: it cannot be used.
      text_targets: int [n], answer tokens of each sample; None for generation.
      sources: (samples, weight) of each source, whose samples follow one another; by default all
        are of one.
    """

    tokens: np.ndarray
    text_targets: np.ndarray | None = None
    sources: tuple[tuple[int, Fraction], ...] = ()


class Schedule:
    """The samples of every step.

    Args:
      tables: for each kind in the mixture its lengths.
      samples: samples of each kind in a step (`TrainConfig.samples`); this is the exact ratio.
      length: T, slots of a row.
      seed: seed of the order.

    Raises:
      InputError: a source has fewer samples than one step takes, or a sample is longer than a row.
    """

    def __init__(
        self,
        tables: Mapping[Kind, LengthTable],
        samples: Mapping[Kind, int],
        *,
        length: int,
        seed: int,
    ):
        self._tables, self._length = dict(tables), length
        self._seed = seed
        self._orders: dict[Kind, _Order] = {}
        for kind in KINDS:
            if n := samples.get(kind, 0):
                table = tables.get(kind, LengthTable(np.zeros(0, int)))
                self._orders[kind] = _Order(kind, table, n, length, seed)

    def step(self, step: int) -> list[tuple[Kind, int]]:
        """The samples of a step, as (kind, number), in the order in which they are packed."""
        found = [
            (kind, number)
            for kind, order in self._orders.items()
            for number in order.numbers(*order.turns(step)).tolist()
        ]
        order = np.random.default_rng((self._seed, step)).permutation(len(found))
        return [found[i] for i in order]

    def alternatives(self, step: int, kind: Kind, number: int) -> Iterator[int]:
        """The samples that stand in for one of a step, should it turn out broken.

        They are those that follow it in the order of its stratum, so they are about as long.

        Args:
          step: the step.
          kind: kind of the sample.
          number: its number, one of `step(step)`.

        Yields:
          All other numbers of the stratum, always in the same order.
        """
        order = self._orders[kind]
        which, turns = order.turns(step)
        place = int(np.flatnonzero(order.numbers(which, turns) == number)[0])
        here = slice(place, place + 1)
        for ahead in range(1, int(order.sizes[which[place]])):
            yield int(order.numbers(which[here], turns[here], ahead)[0])

    def lengths(self, step: int) -> list[int]:
        """Slots of the samples of a step, in order."""
        return [int(self._tables[kind].tokens[i]) for kind, i in self.step(step)]

    def rows(self, step: int) -> list[list[int]]:
        """The rows of a step: indices into `step(step)`, as `pack` will lay them."""
        return fit(self.lengths(step), self._length)

    def rows_needed(self, steps: Iterable[int], enough: int = 0) -> int:
        """The largest number of rows among some steps; see `fit` for `enough`."""
        return max(len(fit(self.lengths(step), self._length, enough)) for step in steps)

    def longest(self) -> list[int]:
        """Slots of samples that no step exceeds, kind by kind, whichever samples it takes.

        A step takes at most one sample of each stratum, so one by one its samples are no longer
        than the longest of as many strata. They come in the order in which they are to be packed.
        """
        most: list[int] = []
        for kind, order in self._orders.items():
            tokens = self._tables[kind].tokens
            ends = sorted((int(tokens[s[-1]]) for s in order.strata), reverse=True)
            most += ends[: order.samples]
        shuffle = np.random.default_rng(self._seed).permutation(len(most))
        return [most[i] for i in shuffle.tolist()]


class _Order:
    """The strata of one kind, source after source, and the order in each.

    Attributes:
      samples: of a step.
      strata: for each the numbers of its samples, int32, the longest one last.
      sizes: how many those are, uint64.
    """

    def __init__(self, kind: Kind, table: LengthTable, samples: int, length: int, seed: int):
        (wrong,) = np.nonzero((table.tokens < 0) | (table.tokens > length))
        if len(wrong):
            raise InputError(
                f"{kind} sample {wrong[0]} has {table.tokens[wrong[0]]} tokens",
                f"1 to {length}, the length of a row",
            )
        self.samples = samples
        sources = table.sources or ((len(table.tokens), Fraction(1)),)
        self._shares = Shares([weight for _, weight in sources], samples)
        self._key = _mix(np.array([seed], np.uint64) + np.uint64(KINDS.index(kind)))
        self._first: list[int] = []
        self.strata: list[np.ndarray] = []
        start = 0
        for (size, _), most in zip(sources, self._shares.most, strict=True):
            tokens = table.tokens[start : start + size]
            (usable,) = np.nonzero(tokens)
            if len(usable) < most:
                raise InputError(
                    f"{len(usable)} {kind} samples", f"at least {most}, which one step takes"
                )
            # As 16 bits, which rows up to 65,535 slots need, NumPy sorts ten times as fast.
            narrow = tokens[usable].astype(np.min_scalar_type(length))
            by_length = usable[np.argsort(narrow, kind="stable")] + start
            self._first.append(len(self.strata))
            self.strata += np.array_split(by_length.astype(np.int32), most)
            start += size
        self.sizes = np.array([len(stratum) for stratum in self.strata], np.uint64)

    def turns(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """What a step takes: strata (int [n]), and how often each has been dealt from before."""
        which, turns = [], []
        befores, counts = self._shares.before(step), self._shares.counts(step)
        for first, most, before, count in zip(
            self._first, self._shares.most, befores, counts, strict=True
        ):
            turn, place = np.divmod(before + np.arange(count), most)
            which.append(first + place)
            turns.append(turn)
        return np.concatenate(which), np.concatenate(turns).astype(np.uint64)

    def numbers(self, which: np.ndarray, turns: np.ndarray, ahead: int = 0) -> np.ndarray:
        """Samples of some strata, int32 [n]: those of the given turns, or so many places on."""
        sizes = self.sizes[which]
        epochs, index = np.divmod(turns, sizes)
        key = np.broadcast_to(self._key, len(which))
        for number in (which, epochs):
            key = _mix(key + number.astype(np.uint64))
        places = shuffled((index + np.uint64(ahead)) % sizes, sizes, key).tolist()
        picked = [self.strata[s][i] for s, i in zip(which.tolist(), places, strict=True)]
        return np.array(picked, np.int32)


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
