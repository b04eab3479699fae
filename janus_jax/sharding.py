"""Device meshes and the rules that place arrays on them.

Parameters carry logical axis names (`janus_jax.nn.layers.param`); `Rules` maps each name to a mesh
axis. The same rules give the sharding of parameters, of optimizer state and, through `constrain`,
of activations, so one table decides the layout of a run:

    mesh axis   meaning                               parameters      activations
    data        replicas across slices                -               batch
    fsdp        parameters split, gathered when used  embed mlp_rows  batch
    tensor      a matrix split inside a layer         heads mlp mlp_rows vocab conv_out
    sequence    long sequences split                  -               length
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from janus_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor", "sequence")


@dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axes. None keeps an axis whole.

    `embed` and the others are parameter axes; `batch` and `length` are activation axes. A rule
    naming a mesh axis that has size 1 costs nothing, so one table serves every mesh.
    """

    batch: tuple[str, ...] | None = ("data", "fsdp")
    length: tuple[str, ...] | None = ("sequence",)
    embed: tuple[str, ...] | None = ("fsdp",)
    heads: tuple[str, ...] | None = ("tensor",)
    mlp: tuple[str, ...] | None = ("tensor",)
    mlp_rows: tuple[str, ...] | None = ("tensor", "fsdp")
    vocab: tuple[str, ...] | None = ("tensor",)
    conv_out: tuple[str, ...] | None = ("tensor",)
    norm: tuple[str, ...] | None = None

    def spec(
        self, axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, path: str = "array"
    ) -> PartitionSpec:
        """The partition of one array.

        Args:
          axes: a logical axis or None for each dimension.
          shape: the array's shape.
          mesh: where it goes.
          path: its name, for messages.

        Raises:
          InputError: two dimensions on one mesh axis, or a dimension the mesh axis does not divide.
        """
        sizes = dict(mesh.shape)
        used: set[str] = set()
        parts: list[tuple[str, ...] | None] = []
        for axis, dim in zip(axes, shape, strict=True):
            targets = getattr(self, axis) if axis is not None else None
            targets = tuple(t for t in targets or () if sizes.get(t, 1) > 1)
            taken = used & set(targets)
            if taken:
                raise InputError(
                    f"{path}: axes {axes} put two dimensions on mesh axis {sorted(taken)[0]!r}; "
                    "change one of their sharding rules"
                )
            ways = math.prod(sizes[t] for t in targets)
            if dim % ways:
                raise InputError(
                    f"{path}: dimension {axis!r} of size {dim} does not divide over {ways} devices "
                    f"(mesh axes {', '.join(targets)})",
                    fix="use a mesh whose size divides it",
                )
            used |= set(targets)
            parts.append(targets or None)
        return PartitionSpec(*parts)


DEFAULT_RULES = Rules()


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Any = None) -> Mesh:
    """A mesh over `data`, `fsdp`, `tensor` and `sequence`, all axes Auto.

    Args:
      sizes: size of each named axis; missing axes have size 1. None: every device on `fsdp`.
      devices: the devices to use; default all of them.

    Raises:
      InputError: an unknown axis, a size below 1, or a product other than the number of devices.
    """
    devices = list(devices) if devices is not None else jax.devices()
    sizes = dict(sizes) if sizes is not None else {"fsdp": len(devices)}
    unknown = set(sizes) - set(MESH_AXES)
    if unknown or any(n < 1 for n in sizes.values()):
        raise InputError(f"mesh {sizes}", f"positive sizes for {', '.join(MESH_AXES)}")
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    if math.prod(shape) != len(devices):
        raise InputError(
            f"mesh {sizes} has {math.prod(shape)} places for {len(devices)} devices",
            fix="choose sizes whose product is the number of devices",
        )
    return jax.make_mesh(
        shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def parse_mesh(text: str) -> dict[str, int]:
    """Reads the form of the command line, `fsdp=2,tensor=4`.

    Raises:
      InputError: not that form, an unknown axis, an axis named twice, or a size below 1.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, equals, size = part.partition("=")
        if not equals or axis not in MESH_AXES or axis in sizes or not size.isdecimal():
            raise InputError(
                f"mesh {text!r}",
                f"sizes of {', '.join(MESH_AXES)}, such as fsdp=2,tensor=4",
            )
        sizes[axis] = int(size)
    if min(sizes.values()) < 1:
        raise InputError(f"mesh {text!r}", "sizes of 1 and more")
    return sizes


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters are spread over; None where they are on one device."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return None
    return sharding.mesh if sharding.mesh.size > 1 else None


def on_mesh(params: Any) -> contextlib.AbstractContextManager[Any]:
    """Makes the mesh of the parameters the one that `constrain` pins activations to."""
    mesh = mesh_of(params)
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def least_of_hosts(params: Any, value: int) -> int:
    """The least of all hosts' values, where parameters are spread over hosts; else `value`.

    Hosts that share a mesh must run the same programs, so what each finds out by itself (its free
    memory, say) has to be agreed on. All of them must call this.
    """
    mesh = mesh_of(params)
    if mesh is None or not mesh.is_multi_process:
        return value
    from jax.experimental import multihost_utils

    return int(np.min(multihost_utils.process_allgather(np.int32(value))))


def param_shardings(params: nnx.State, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> nnx.State:
    """The sharding of every parameter, as a tree like `params`.

    Args:
      params: concrete or abstract parameters, each carrying its logical `axes`.
      mesh: the mesh.
      rules: the table.

    Raises:
      InputError: a rule does not fit a parameter; the message has its path.
    """

    def one(path: Any, variable: nnx.Variable) -> Any:
        name = "/".join(map(str, path))
        axes = variable.get_metadata("axes")
        return variable.replace(
            NamedSharding(mesh, rules.spec(axes, tuple(variable.shape), mesh, name))
        )

    return nnx.map_state(one, params)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the layout of an activation under the mesh of `jax.set_mesh`.

    Without a mesh, or outside `jax.jit`, where an array lies where it was put, it does nothing.

    Args:
      x: the activation.
      *axes: a logical axis or None for each dimension.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not isinstance(x, Tracer):
        return x
    # An activation may be smaller than the mesh (one prompt, many devices): then it stays whole.
    parts: list[tuple[str, ...] | None] = []
    for axis, dim in zip(axes, x.shape, strict=True):
        targets = getattr(DEFAULT_RULES, axis) if axis is not None else None
        targets = tuple(t for t in targets or () if mesh.shape.get(t, 1) > 1)
        ways = math.prod(mesh.shape[t] for t in targets)
        parts.append(targets if targets and dim % ways == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))
