"""Applies a key table in either direction, after checking all of it.

    plan = plan_import(HF, shapes, their_shapes)     # every key and shape, no tensor touched
    for path, array in plan.read(state_dict): ...    # one tensor at a time

A plan starts from our parameters: each must have exactly one row and one tensor, and every tensor
must be used or be on the table's list of drops. What does not fit is reported whole, never one
key at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.keys.table import Row, Table, regex
from convert.transforms import Shape, Transform
from janus_jax.errors import InputError
from janus_jax.streaming import copy_in_order


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
    """One parameter: its name on either side, the transform, and its shape on either side.

    Attributes:
      ours: path of the parameter.
      theirs: key of the tensor it comes from.
      transform: how it changes between the two.
      our_shape: shape of the parameter.
      their_shape: shape of the tensor, or of the rows that are this parameter.
      start: first of these rows where the tensor is fused from several parameters; None where it
        is this parameter alone.
      tied: the tensor belongs to another entry, which is the one that writes it.
    """

    ours: str
    theirs: str
    transform: Transform
    our_shape: Shape
    their_shape: Shape
    start: int | None = None
    tied: bool = False


@dataclass(frozen=True)
class Plan:
    """A checked conversion.

    Attributes:
      table: name of the layout.
      entries: one for each parameter, in the order of our paths.
      dropped: their keys that the table allows to be left behind.
    """

    table: str
    entries: tuple[Entry, ...]
    dropped: tuple[str, ...] = ()

    @property
    def their_specs(self) -> dict[str, Shape]:
        """Shape of every tensor that `write` gives, in its order; nothing is read for it."""
        return {key: _tensor_shape(group) for key, group in self._tensors().items()}

    def read(self, theirs: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Their tensors as ours, one at a time.

        Args:
          theirs: arrays, or stored tensors whose `read()` gives an array, by key.

        Yields:
          `(path, array)`; the arrays are views wherever numpy can make one, so that nothing is
          copied before the caller does.
        """
        for entry in self.entries:
            yield entry.ours, self.to_ours(entry, theirs[entry.theirs])

    def to_ours(self, entry: Entry, stored: Any) -> np.ndarray:
        """One parameter from the tensor, an array or a stored one, that holds it."""
        array = stored if isinstance(stored, np.ndarray) else stored.read()
        if entry.start is not None:
            array = array[entry.start : entry.start + entry.their_shape[0]]
        return entry.transform.to_ours(array)

    def write(self, ours: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Our tensors as theirs, one at a time, in the order of `their_specs`.

        Args:
          ours: arrays by path. Each is looked up once, so a mapping that reads on demand keeps one
            tensor in memory (those that are fused into one, together).

        Yields:
          `(key, array)`, each contiguous.
        """
        for key, group in self._tensors().items():
            arrays = [e.transform.to_theirs(np.asarray(ours[e.ours])) for e in group]
            if len(group) > 1:
                # Without `out` the result of transposed arrays would be transposed in memory too.
                fused = np.empty(_tensor_shape(group), np.result_type(*[a.dtype for a in arrays]))
                yield key, np.concatenate(arrays, out=fused)
            else:
                array = arrays[0]
                if not array.flags.c_contiguous:
                    array = copy_in_order(array, array.dtype)
                yield key, array.reshape(group[0].their_shape)

    def _tensors(self) -> dict[str, list[Entry]]:
        """The entries that each tensor of theirs is written from."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.entries:
            if not entry.tied:
                groups.setdefault(entry.theirs, []).append(entry)
        return {key: sorted(group, key=lambda e: e.start or 0) for key, group in groups.items()}


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
    plan = Plan(table.name, entries)
    tensors = plan.their_specs
    # A tied tensor has its shape from the parameter that owns it; another may be all there is.
    tensors |= {e.theirs: e.their_shape for e in entries if e.theirs not in tensors}
    left = [key for key in their_shapes if key not in tensors]
    dropped = tuple(key for key in left if table.drops_key(key))
    problems = Problems(
        unmapped,
        twice,
        missing=tuple(key for key in tensors if key not in their_shapes),
        unexpected=tuple(key for key in left if key not in dropped),
        wrong_shape=tuple(
            f"{key} is {tuple(their_shapes[key])}, expected {shape}"
            for key, shape in tensors.items()
            if tuple(their_shapes.get(key, shape)) != shape
        ),
    )
    if problems:
        raise MappingError(table.name, problems)
    return dataclasses.replace(plan, dropped=dropped)


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
    return Plan(table.name, entries)


def _match(
    table: Table, our_shapes: Mapping[str, Shape]
) -> tuple[tuple[Entry, ...], tuple[str, ...], tuple[str, ...]]:
    """Entries of all parameters; what has no row; paths and keys claimed twice."""
    rows = [(regex(row.ours), row) for row in table.rows]
    pairs: list[tuple[Row, Entry]] = []
    unmapped: list[str] = []
    twice: list[str] = []
    for path, shape in our_shapes.items():
        found = [(m, row) for pattern, row in rows if (m := pattern.fullmatch(path))]
        found = [(m, row) for m, row in found if row.transform.rank in (None, len(shape))]
        if not found:
            unmapped.append(path)
            continue
        if len(found) > 1:
            twice.append(f"{path} by {len(found)} rows")
        match, row = found[0]
        pairs.append((row, _entry(row, match, path, tuple(shape))))
    starts, incomplete, contested = _claims(table, pairs)
    entries = (dataclasses.replace(entry, start=starts.get(entry.ours)) for _, entry in pairs)
    return tuple(entries), (*unmapped, *incomplete), (*twice, *contested)


def _claims(
    table: Table, pairs: list[tuple[Row, Entry]]
) -> tuple[dict[str, int], list[str], list[str]]:
    """Who claims each tensor of theirs: one parameter, or every slice of a fused one once.

    Returns:
      The first row of each parameter that is a slice, by path; tensors of which a slice has no
      parameter; tensors that two parameters claim.
    """
    claims: dict[str, list[tuple[Row, Entry]]] = {}
    for row, entry in pairs:
        if not row.tied:
            claims.setdefault(entry.theirs, []).append((row, entry))
    starts: dict[str, int] = {}
    incomplete: list[str] = []
    contested: list[str] = []
    for key, claim in claims.items():
        wanted = [row.slice for row in table.rows if row.theirs == claim[0][0].theirs]
        slices = [row.slice for row, _ in claim]
        if len(set(slices)) < len(slices) or (None in slices and len(slices) > 1):
            contested.append(f"{key} by {len(claim)} parameters")
        elif lacking := [str(index) for index in wanted if index not in slices]:
            incomplete.append(f"{key} in part (slice {', '.join(lacking)} is no parameter)")
        elif None not in slices:
            starts |= _starts([entry for _, entry in sorted(claim, key=lambda c: c[0].slice or 0)])
    return starts, incomplete, contested


def _entry(row: Row, match: re.Match[str], path: str, shape: Shape) -> Entry:
    theirs = row.theirs.format(**match.groupdict())
    return Entry(
        path, theirs, row.transform, shape, row.transform.their_shape(shape), tied=row.tied
    )


def _starts(slices: list[Entry]) -> dict[str, int]:
    """First row of each parameter in the tensor that stacks them in this order."""
    rows = itertools.accumulate((entry.their_shape[0] for entry in slices), initial=0)
    return {entry.ours: start for entry, start in zip(slices, rows, strict=False)}


def _tensor_shape(group: list[Entry]) -> Shape:
    """Shape of the tensor that these entries are written to."""
    if len(group) == 1:
        return group[0].their_shape
    return (sum(entry.their_shape[0] for entry in group), *group[0].their_shape[1:])
