"""The packed batch of any step, for any number of hosts.

Dims: A micro-steps of an optimizer step, G groups of rows.

A group is the rows of one shard of the batch axis in one micro-step, so that no device asks another
for a picture or a target: every index of a group's arrays speaks of its own rows. All hosts lay out
the whole step from its entries alone, and then each reads the samples of its own groups.

Shapes are those that the first steps need, so that the train step compiles once. A later step that
needs more gets larger arrays, and a compilation; nothing is dropped or put off.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from train.data.packing import Kind, PackedShape, Sample, fit, pack
from train.data.source import Entry, Source

# Steps whose needs decide the shapes; always the first ones, so that a resumed run has the same.
LOOKAHEAD = 64
GROWTH = 1.25

Row = tuple[int, ...]


@dataclass(frozen=True)
class Needs:
    """What the fullest group of a step takes."""

    rows: int
    pictures: int
    drawings: int
    text_targets: int

    def most(self, other: Needs) -> Needs:
        """The larger of each."""
        return Needs(*(max(pair) for pair in zip(self.astuple(), other.astuple(), strict=True)))

    def astuple(self) -> tuple[int, ...]:
        """The four numbers."""
        return (self.rows, self.pictures, self.drawings, self.text_targets)


class PackedBatches:
    """Steps of a source as arrays.

    Args:
      source: the samples.
      kinds: kinds that the run trains on.
      length: slots of a row.
      image_size: side of the pictures, pixels.
      image_tokens: P, slots of a picture to understand and codes of one to draw.
      groups: G, shards of the batch axis.
      accumulate: A.
      rows: rows of a step over all groups and micro-steps, a multiple of A * G; 0: as many as the
        first steps need.
    """

    def __init__(
        self,
        source: Source,
        *,
        kinds: Collection[Kind],
        length: int,
        image_size: int,
        image_tokens: int,
        groups: int = 1,
        accumulate: int = 1,
        rows: int = 0,
    ):
        self.source, self.groups, self.accumulate = source, groups, accumulate
        self._kinds, self._rows = tuple(kinds), rows
        self._shape = PackedShape(0, length, 0, image_size, image_tokens, 0, 0)

        self.layout = functools.lru_cache(maxsize=4)(self._layout)

    def __getstate__(self) -> dict[str, Any]:
        """What a loader process is sent: everything but the layouts at hand."""
        return {name: value for name, value in self.__dict__.items() if name != "layout"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Makes a copy in another process."""
        self.__dict__.update(state)
        self.layout = functools.lru_cache(maxsize=4)(self._layout)

    def _layout(self, step: int) -> tuple[list[Entry], list[list[Row]]]:
        """The samples of a step; and for each micro-step and group, in that order, its rows.

        A row is made of places in the list of samples.
        """
        entries = self.source.plan(step)
        rows = fit([entry.tokens for entry in entries], self._shape.length, enough=self._rows)
        return entries, deal(rows, entries, self.groups * self.accumulate)

    @functools.cached_property
    def usual(self) -> PackedShape:
        """Capacities of a group that serve all of the first steps."""
        most = Needs(self._rows // (self.groups * self.accumulate), 0, 0, 0)
        for step in range(LOOKAHEAD):
            most = most.most(self._needs(step))
        return replace(
            self._shape,
            rows=most.rows,
            pictures=most.pictures,
            drawings=most.drawings,
            text_targets=_rounded(most.text_targets),
        )

    def shape(self, step: int) -> PackedShape:
        """Capacities of a group in a step: the usual ones, or larger ones if it needs them."""
        shape, needs = self.usual, self._needs(step)
        return replace(
            shape,
            rows=_grown(shape.rows, needs.rows),
            pictures=_grown(shape.pictures, needs.pictures),
            drawings=_grown(shape.drawings, needs.drawings),
            text_targets=_grown(shape.text_targets, needs.text_targets),
        )

    def _needs(self, step: int) -> Needs:
        entries, layout = self.layout(step)
        most = Needs(1, 0, 0, 0)
        for rows in layout:
            group = [entries[i] for row in rows for i in row]
            most = most.most(
                Needs(
                    len(rows),
                    sum(entry.pictures for entry in group),
                    sum(entry.kind == "generation" for entry in group),
                    sum(entry.text_targets for entry in group),
                )
            )
        return most

    def groups_of(self, step: int, numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Reads and packs some groups of a step.

        Args:
          step: the step.
          numbers: of micro-step a, group g has the number a * G + g.

        Returns:
          For each group what `pack` gives.
        """
        shape = self.shape(step)
        entries, layout = self.layout(step)
        ranks: list[int] = []
        seen: Counter[Kind] = Counter()
        for entry in entries:
            ranks.append(seen[entry.kind])
            seen[entry.kind] += 1
        found = {}
        for number in numbers:
            rows: list[list[tuple[int, Sample]]] = []
            for row in layout[number]:
                read = ((ranks[i], self.source.load(step, entries[i])) for i in row)
                rows.append([(rank, sample) for rank, sample in read if sample is not None])
            found[number] = pack(rows, shape, self._kinds)
        return found

    def __call__(self, step: int) -> dict[str, Any]:
        """The whole batch on one host: groups one after another along the first axis.

        With A above 1 there is an axis of micro-steps before it.
        """
        found = self.groups_of(step, range(self.groups * self.accumulate))
        return join([found[i] for i in range(len(found))], self.accumulate)


def join(groups: Sequence[dict[str, Any]], accumulate: int) -> dict[str, Any]:
    """Groups of packed arrays as one batch, see `PackedBatches.__call__`."""

    def one(*arrays: np.ndarray) -> np.ndarray:
        whole = np.concatenate(arrays)
        return whole.reshape(accumulate, -1, *whole.shape[1:]) if accumulate > 1 else whole

    import jax

    return jax.tree.map(one, *groups)


def deal(rows: Sequence[Sequence[int]], entries: Sequence[Entry], groups: int) -> list[list[Row]]:
    """Deals rows out to groups of equal size, so that pictures and targets are spread evenly.

    The fullest row goes first, each to the group that it fills least (longest processing time
    first; Graham, 1969), by the scarcest of pictures, drawings and text targets.

    Args:
      rows: places in `entries`.
      entries: the samples of a step.
      groups: how many groups.

    Returns:
      The rows of each group; all have the same number, but that some lack their last one.
    """
    if groups == 1:
        return [[tuple(row) for row in rows]]
    loads = np.array(
        [
            [
                sum(entries[i].pictures for i in row),
                sum(entries[i].kind == "generation" for i in row),
                sum(entries[i].text_targets for i in row),
            ]
            for row in rows
        ],
        float,
    ).reshape(-1, 3)
    loads /= np.maximum(loads.sum(0), 1)
    order = np.argsort(-loads.max(1), kind="stable")
    each = math.ceil(len(rows) / groups)
    filled = np.zeros((groups, 3))
    dealt: list[list[Row]] = [[] for _ in range(groups)]
    for r in order.tolist():
        worst = (filled + loads[r]).max(1)
        worst[[len(g) >= each for g in dealt]] = np.inf
        group = int(np.argmin(worst))
        filled[group] += loads[r]
        dealt[group].append(tuple(rows[r]))
    return dealt


def _rounded(n: int) -> int:
    """Up to the next multiple of 8: targets vary a little from step to step."""
    return -(-n // 8) * 8


def _grown(there: int, needed: int) -> int:
    """`there`, or as many times a quarter more of it as it takes to hold `needed`."""
    while there < needed:
        there = max(math.ceil(there * GROWTH), 1)
    return there
