"""Mixtures: which data sets a run reads, and how many samples of each a step takes.

Every step holds the same number of samples of each kind (`TrainConfig.samples`). Within a kind the
data sets share that number by their weights, which seldom divides evenly: of 5 samples at 1:1 one
step takes 3 and 2, the next 2 and 3. `Shares` says which, by arithmetic on the step's number alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from janus_jax.errors import InputError

_LOWEST, _HIGHEST = Fraction(1, 10**6), Fraction(10**6)


@dataclass(frozen=True)
class WeightedSet:
    """A packed data set of a mixture.

    Attributes:
      directory: where it lies.
      weight: its share of each kind that it holds, relative to the other sets that hold that kind.
    """

    directory: Path
    weight: Fraction = Fraction(1)


def parse_data(texts: Sequence[str]) -> tuple[WeightedSet, ...]:
    """Reads `--data DIR[:WEIGHT] ...`.

    A name with a colon that exists as a directory is taken whole, without a weight.

    Args:
      texts: at least one directory, each with a weight of its own or 1.

    Returns:
      The data sets, in the given order.

    Raises:
      InputError: none, one twice, or a weight that is not a number from 1e-6 to 1e6.
    """
    if not texts:
        raise InputError("--data is missing", "DIR[:WEIGHT], a packed data set, once or more")
    sets: list[WeightedSet] = []
    for text in texts:
        found = _parse(text)
        if any(found.directory == other.directory for other in sets):
            raise InputError(f"--data names {str(found.directory)!r} twice", "each data set once")
        sets.append(found)
    return tuple(sets)


def _parse(text: str) -> WeightedSet:
    name, colon, weight = text.rpartition(":")
    if not colon or "/" in weight or Path(text).is_dir():
        return WeightedSet(Path(text))
    try:
        value = Fraction(weight) if math.isfinite(float(weight)) else Fraction(0)
    except ValueError:
        value = Fraction(0)
    if not name or not _LOWEST <= value <= _HIGHEST:
        raise InputError(
            f"--data {text!r}: the weight is {weight!r}", "DIR:WEIGHT with a number, 1e-6 to 1e6"
        )
    return WeightedSet(Path(name), value)


class Shares:
    """How many samples of each source every step takes: systematic sampling over the steps.

    A source is due w * n samples a step. It gets the whole part of that in every step; what is left
    of all sources are fractions that sum to a whole number r. They are laid end to end on a line of
    length r, and a step takes the sources under the points u, u + 1, ..., u + r - 1. A fraction is
    shorter than 1, so none is taken twice. u runs over the multiples of the fractions' common
    denominator in golden-ratio steps, so that after one round (as many steps as the denominator)
    every source has had exactly its share, and after any part of it very nearly.

    Args:
      weights: of the sources, above 0.
      samples: n, samples of a step.

    Attributes:
      most: for each source the most samples that a step takes of it.
      period: steps of a round.
    """

    def __init__(self, weights: Sequence[Fraction], samples: int):
        due = [Fraction(w) * samples / sum(weights) for w in weights]
        self._whole = [math.floor(share) for share in due]
        self.period = math.lcm(*(share.denominator for share in due))
        self._parts = [int((s - w) * self.period) for s, w in zip(due, self._whole, strict=True)]
        ends = itertools.accumulate(self._parts)
        self._starts = [end - part for end, part in zip(ends, self._parts, strict=True)]
        self._stride = _stride(self.period)
        self.most = [w + bool(part) for w, part in zip(self._whole, self._parts, strict=True)]

    def before(self, step: int) -> list[int]:
        """Samples of each source that all steps before this one take together."""
        return [
            step * whole + _hits(step, self.period, self._stride, start, part)
            for whole, start, part in zip(self._whole, self._starts, self._parts, strict=True)
        ]

    def counts(self, step: int) -> list[int]:
        """Samples of each source in a step: the due number rounded down or up; their sum is n."""
        pairs = zip(self.before(step), self.before(step + 1), strict=True)
        return [after - before for before, after in pairs]


def _stride(period: int) -> int:
    """The number prime to `period` that is nearest to its golden section."""
    # Integer arithmetic, since a period can be larger than floats are exact: 1 / 1.618... by the
    # ratio of two Fibonacci numbers.
    middle = period * 1134903170 // 1836311903
    for distance in itertools.count():
        for stride in (middle + distance, middle - distance):
            if stride > 0 and math.gcd(stride, period) == 1:
                return stride
    raise AssertionError


def _hits(n: int, period: int, stride: int, start: int, width: int) -> int:
    """How many i in [0, n) have (stride * i - start) mod period < width."""
    if not width:
        return 0
    return _floor_sum(n, period, stride, -start) - _floor_sum(n, period, stride, -start - width)


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
    """The sum of floor((a * i + b) / m) over i in [0, n), in as many rounds as Euclid's algorithm.

    Counts the lattice points under a line, turning the picture by its diagonal each round (Graham,
    Knuth and Patashnik, Concrete Mathematics, section 3.5).
    """
    total = 0
    while True:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        n, b = divmod(a * n + b, m)
        if not n:
            return total
        a, m = m, a
