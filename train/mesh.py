"""The mesh of a run, and its batches on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.errors import InputError
from janus_jax.sharding import DEFAULT_RULES, make_mesh, parse_mesh

# Packed arrays [rows, length], which a sequence axis splits too.
ROWS = ("tokens", "segment_ids", "positions", "image_index", "code_index")


def training_mesh(text: str) -> Mesh:
    """The mesh of `--mesh`, over the first devices of one host or over all devices of many.

    Args:
      text: see `mesh_sizes`.

    Raises:
      InputError: not that form, or more or, with several processes, fewer places than devices.
    """
    devices = jax.devices()
    sizes = mesh_sizes(text, len(devices), exact=jax.process_count() > 1)
    return make_mesh(sizes, devices[: math.prod(sizes.values())])


def mesh_sizes(text: str, devices: int, *, exact: bool) -> dict[str, int]:
    """Reads `--mesh`.

    Args:
      text: sizes of axes; `all` for one of them takes the devices that the others leave.
      devices: how many there are.
      exact: whether all of them must have a place.

    Raises:
      InputError: not that form, or more or, if `exact`, fewer places than devices.
    """
    axes = [part.partition("=")[0] for part in text.split(",") if part.endswith("=all")]
    sizes = parse_mesh(text.replace("=all", "=1"))
    if len(axes) > 1:
        raise InputError(f"--mesh {text}", "`all` for one axis only")
    if axes:
        others = math.prod(sizes.values())
        if devices % others:
            raise InputError(
                f"--mesh {text}: {devices} devices do not divide by {others}",
                fix="choose sizes whose product divides the number of devices",
            )
        sizes[axes[0]] = devices // others
    places = math.prod(sizes.values())
    if places > devices or (exact and places != devices):
        raise InputError(
            f"--mesh {text} has {places} places for {devices} devices",
            fix="choose sizes whose product is the number of devices, or fsdp=all",
        )
    return sizes


def batch_shards(mesh: Mesh) -> int:
    """Over how many devices rows are spread: the groups of a packed batch."""
    return math.prod(mesh.shape[axis] for axis in DEFAULT_RULES.batch or ())


def own_groups(mesh: Mesh, groups: int) -> list[int]:
    """The groups of a micro-step whose rows lie on this process' devices."""
    sharding = NamedSharding(mesh, PartitionSpec(DEFAULT_RULES.batch))
    indices: Any = sharding.addressable_devices_indices_map((groups,))
    return sorted({i for (where,) in indices.values() for i in range(*where.indices(groups))})


def place(groups: Mapping[int, Any], mesh: Mesh, *, each: int, accumulate: int) -> Any:
    """Puts packed groups where they belong.

    Args:
      groups: by number, see `PackedBatches.groups_of`: at least those of this process.
      mesh: the mesh.
      each: G, groups of a micro-step.
      accumulate: micro-steps.

    Returns:
      The batch of the step, as global arrays.
    """
    some = next(iter(groups.values()))
    leaves = jax.tree.leaves_with_path(some)
    flat = {number: jax.tree.leaves(group) for number, group in groups.items()}
    placed = []
    for i, (path, leaf) in enumerate(leaves):
        rows = leaf.shape[0]
        shape = (each * rows, *leaf.shape[1:])
        length = DEFAULT_RULES.length if path[-1].key in ROWS else None
        spec = (DEFAULT_RULES.batch, length) if length else (DEFAULT_RULES.batch,)
        if accumulate > 1:
            shape, spec = (accumulate, *shape), (None, *spec)

        def part(index: Any, i: int = i, rows: int = rows) -> np.ndarray:
            *micro, first = index[: 1 + (accumulate > 1)]
            start, stop, _ = first.indices(each * rows)
            numbers = range(start // rows, stop // rows) if rows else [next(iter(flat))]
            parts = [
                np.concatenate([flat[a * each + g if rows else g][i] for g in numbers])
                for a in range(accumulate)
            ]
            whole = np.stack(parts) if micro else parts[0]
            return whole[(slice(None),) * (1 + len(micro)) + tuple(index[1 + len(micro) :])]

        where = NamedSharding(mesh, PartitionSpec(*spec))
        placed.append(jax.make_array_from_callback(shape, where, part))
    return jax.tree.unflatten(jax.tree.structure(some), placed)


def replicate(params: Any, mesh: Mesh) -> Any:
    """Puts arrays that every process has on a device of its own on all devices of the mesh."""
    where = NamedSharding(mesh, PartitionSpec())
    if not mesh.is_multi_process:
        return jax.device_put(params, where)

    def one(x: jax.Array) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    return jax.tree.map(one, params)


def place_whole(batch: Any, mesh: Mesh) -> Any:
    """Puts a batch that every process has made whole: its first axis over the batch axes."""
    where = NamedSharding(mesh, PartitionSpec(DEFAULT_RULES.batch))

    def one(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

    return jax.tree.map(one, batch)
