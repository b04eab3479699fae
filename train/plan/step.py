"""The training step of a preset on a slice of a pod, as shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from janus_jax.config import JanusConfig, get_config
from janus_jax.errors import InputError
from janus_jax.functional import abstract
from janus_jax.nn.segments import LANES
from janus_jax.sharding import MESH_AXES
from train.config import TrainConfig
from train.mesh import batch_shards, mesh_sizes
from train.optim import make_optimizer
from train.plan.chips import Topology
from train.plan.layout import Layout, Lengths, abstract_batch, make_layout
from train.scanned import stack
from train.state import TrainState, abstract_state, state_shardings


@dataclass(frozen=True)
class PlannedStep:
    """A step and where everything of it lies.

    Attributes:
      config: the preset.
      model: its architecture.
      topology: the slice.
      sizes: of the mesh axes.
      mesh: the mesh, without devices.
      layout: the packed batch.
      state: the training state, as shapes.
      shardings: of the state.
      batch: the step's input, as shapes with shardings.
    """

    config: TrainConfig
    model: JanusConfig
    topology: Topology
    sizes: dict[str, int]
    mesh: AbstractMesh
    layout: Layout
    state: TrainState
    shardings: TrainState
    batch: dict[str, Any]


def plan_step(config: TrainConfig, topology: Topology, lengths: Lengths) -> PlannedStep:
    """Lays a preset out over a slice, without any device.

    Args:
      config: the preset.
      topology: the slice.
      lengths: of the samples that fill the rows.

    Raises:
      InputError: no stage of Janus, rows that do not divide, a mesh that is not the slice's, or a
        rule that does not fit a parameter.
    """
    if config.objective != "janus":
        raise InputError(
            f"preset {config.name} has the objective {config.objective!r}",
            "presets of the objective 'janus'",
        )
    model = get_config(config.model)
    given = mesh_sizes(config.mesh, topology.devices, exact=True)
    sizes = {axis: given.get(axis, 1) for axis in MESH_AXES}
    if config.length % (LANES * sizes["sequence"]):
        raise InputError(
            f"--length {config.length} --mesh {config.mesh}",
            f"lengths that are multiples of {LANES * sizes['sequence']}: TPU attention works on "
            f"blocks of {LANES} tokens",
        )
    auto = (AxisType.Auto,) * len(MESH_AXES)
    mesh: Any = AbstractMesh(tuple(sizes.values()), MESH_AXES, axis_types=auto)
    layout = make_layout(config, model, batch_shards(mesh), lengths)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = abstract_state(stack(abstract(model)[1]), config.trainable, optimizer)
    return PlannedStep(
        config=config,
        model=model,
        topology=topology,
        sizes=sizes,
        mesh=mesh,
        layout=layout,
        state=state,
        shardings=state_shardings(state, mesh),
        batch=abstract_batch(layout, config, mesh),
    )


def on_devices(tree: Any, shardings: Any) -> Any:
    """Shapes with their shardings, to lower a program with."""

    def one(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(one, tree, shardings)
