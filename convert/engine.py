"""Applies a key table in either direction, after checking all of it.

    plan = plan_import(HF, shapes, their_shapes)     # every key and shape, no tensor touched
    for path, array in plan.read(state_dict): ...    # one tensor at a time

A plan starts from our parameters: each must have exactly one row and one tensor, and every tensor
must be used or be on the table's list of drops. What does not fit is reported whole, never one
key at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from convert.keys import Row, Table
from convert.transforms import Shape, Transform
from janus_jax.errors import InputError


@dataclass(frozen=True)
class Problems:
    """What keeps a set of tensors from being a model, by kind; all empty when it fits.

    Attributes:
      unmapped: our paths that no row of the table covers.
      twice_set: paths or keys that two rows, or two parameters, claim.
      missing: tensors (theirs on import, ours on export) that are needed and absent.
      unexpected: tensors that nothing uses and no drop names.
      wrong_shape: `key is SHAPE, expected SHAPE`.
    """

    unmapped: tuple[str, ...] = ()
    twice_set: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def __str__(self) -> str:
        return "; ".join(
            f"{kind.replace('_', ' ')} ({len(names)}): {', '.join(names)}"
            for kind, names in vars(self).items()
            if names
        )


class MappingError(InputError):
    """Tensors that do not fit the model; `problems` and the message list every one of them."""

    def __init__(self, table: str, problems: Problems):
        super().__init__(f"tensors do not fit the model in the {table} layout: {problems}")
        self.problems = problems
        self.table = table

    def __reduce__(self):
        return type(self), (self.table, self.problems)


@dataclass(frozen=True)
class Entry:
    """One tensor: its name on either side, the transform, and its shape on either side."""

    ours: str
    theirs: str
    transform: Transform
    our_shape: Shape
    their_shape: Shape


@dataclass(frozen=True)
class Plan:
    """A checked conversion.

    Attributes:
      entries: one for each parameter, in the order of our paths.
      dropped: their keys that the table allows to be left behind.
    """

    entries: tuple[Entry, ...]
    dropped: tuple[str, ...] = ()

    def read(self, theirs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Their tensors as ours, `(path, array)` one at a time; arrays may be views."""
        for entry in self.entries:
            yield entry.ours, entry.transform.to_ours(theirs[entry.theirs])

    def write(self, ours: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Our tensors as theirs, `(key, array)` one at a time, each contiguous."""
        for entry in self.entries:
            array = entry.transform.to_theirs(np.asarray(ours[entry.ours]))
            yield entry.theirs, np.ascontiguousarray(array)


def shapes_of(tensors: Mapping[str, object]) -> dict[str, Shape]:
    """Shape of every tensor of a flat mapping (arrays, `ShapeDtypeStruct`s, ...)."""
    return {key: tuple(getattr(value, "shape")) for key, value in tensors.items()}  # noqa: B009


def plan_import(
    table: Table, our_shapes: Mapping[str, Shape], their_shapes: Mapping[str, Shape]
) -> Plan:
    """Checks that a state dict is exactly the model.

    Args:
      table: the layout.
      our_shapes: shape of every parameter, from `janus_jax.functional.abstract`; a subset of the
        model (one tower) is as good.
      their_shapes: shape of every tensor of the state dict, as stored.

    Returns:
      The plan; `plan.read` applies it.

    Raises:
      MappingError: unmapped, unexpected, twice-set or missing keys, or wrong shapes; all of them.
    """
    entries, unmapped, twice = _match(table, our_shapes)
    wanted = {entry.theirs for entry in entries}
    left = [key for key in their_shapes if key not in wanted]
    drops = [_regex(pattern) for pattern in table.drops]
    dropped = tuple(key for key in left if any(drop.fullmatch(key) for drop in drops))
    problems = Problems(
        unmapped,
        twice,
        missing=tuple(entry.theirs for entry in entries if entry.theirs not in their_shapes),
        unexpected=tuple(key for key in left if key not in dropped),
        wrong_shape=tuple(
            f"{entry.theirs} is {tuple(their_shapes[entry.theirs])}, expected {entry.their_shape}"
            for entry in entries
            if tuple(their_shapes.get(entry.theirs, entry.their_shape)) != entry.their_shape
        ),
    )
    if problems:
        raise MappingError(table.name, problems)
    return Plan(entries, dropped)


def plan_export(
    table: Table, our_shapes: Mapping[str, Shape], actual_shapes: Mapping[str, Shape]
) -> Plan:
    """Checks that parameters are exactly the model before they are written in another layout.

    Args:
      table: the layout.
      our_shapes: shape of every parameter of the architecture.
      actual_shapes: shape of every parameter there is.

    Returns:
      The plan; `plan.write` applies it.

    Raises:
      MappingError: as `plan_import`, about our paths.
    """
    entries, unmapped, twice = _match(table, our_shapes)
    problems = Problems(
        unmapped,
        twice,
        missing=tuple(path for path in our_shapes if path not in actual_shapes),
        unexpected=tuple(path for path in actual_shapes if path not in our_shapes),
        wrong_shape=tuple(
            f"{path} is {tuple(actual_shapes[path])}, expected {tuple(shape)}"
            for path, shape in our_shapes.items()
            if tuple(actual_shapes.get(path, shape)) != tuple(shape)
        ),
    )
    if problems:
        raise MappingError(table.name, problems)
    return Plan(entries)


def _match(
    table: Table, our_shapes: Mapping[str, Shape]
) -> tuple[tuple[Entry, ...], tuple[str, ...], tuple[str, ...]]:
    """Entries of all parameters; paths without a row; paths and keys claimed twice."""
    rows = [(_regex(row.ours), row) for row in table.rows]
    entries: list[Entry] = []
    unmapped: list[str] = []
    twice: list[str] = []
    for path, shape in our_shapes.items():
        found = [(m, row) for regex, row in rows if (m := regex.fullmatch(path))]
        found = [(m, row) for m, row in found if row.transform.rank in (None, len(shape))]
        if not found:
            unmapped.append(path)
            continue
        if len(found) > 1:
            twice.append(f"{path} by {len(found)} rows")
        entries += [_entry(row, m, path, tuple(shape)) for m, row in found[:1]]
    twice += _repeated(entry.theirs for entry in entries)
    return tuple(entries), tuple(unmapped), tuple(twice)


def _entry(row: Row, match: re.Match[str], path: str, shape: Shape) -> Entry:
    theirs = row.theirs.format(**match.groupdict())
    return Entry(path, theirs, row.transform, shape, row.transform.their_shape(shape))


def _repeated(keys: Iterable[str]) -> list[str]:
    return [f"{key} by {count} parameters" for key, count in Counter(keys).items() if count > 1]


def _regex(pattern: str) -> re.Pattern[str]:
    """The pattern with `{i}` as a decimal index without leading zeros."""
    return re.compile(
        re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>0|[1-9][0-9]*)", re.escape(pattern)),
    )
