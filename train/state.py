"""The training state: a plain pytree, split into what trains and what does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from janus_jax.nn.layers import ShapesOnly


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a run carries from step to step.

    Attributes:
      step: int32 scalar, updates made.
      trainable: parameters that train.
      frozen: parameters that do not: no gradient, no optimizer state.
      opt_state: optimizer state of `trainable`.
    """

    step: jax.Array
    trainable: nnx.State
    frozen: nnx.State
    opt_state: Any

    @property
    def params(self) -> nnx.State:
        """All parameters, trained or not, as one state."""
        return nnx.merge_state(self.trainable, self.frozen)


def is_trainable(parts: tuple[str, ...]) -> Callable[[Any, Any], bool]:
    """A filter for `nnx.split`: parameters below the named children of the model."""
    return lambda path, _: path[0] in parts


def abstract_state(
    build: Callable[[nnx.Rngs], nnx.Module],
    parts: tuple[str, ...],
    optimizer: optax.GradientTransformation,
) -> tuple[Any, TrainState]:
    """What a state is made of, without making it; a checkpoint is restored into it.

    Args:
      build: makes the module from its initialisation keys.
      parts: names of the module's children that train.
      optimizer: the optimizer.

    Returns:
      The module's static graph, and the state with `jax.ShapeDtypeStruct` leaves.
    """
    graphdef, trainable, frozen = nnx.split(build(ShapesOnly()), is_trainable(parts), ...)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    opt_state = jax.eval_shape(optimizer.init, trainable)
    return graphdef, TrainState(step, trainable, frozen, opt_state)


def create_state(
    build: Callable[[nnx.Rngs], nnx.Module],
    parts: tuple[str, ...],
    optimizer: optax.GradientTransformation,
    seed: int,
) -> tuple[Any, TrainState]:
    """A fresh state.

    Args:
      build: makes the module from its initialisation keys.
      parts: names of the module's children that train.
      optimizer: the optimizer.
      seed: seed of the initialisation.

    Returns:
      The module's static graph and the state.
    """
    graphdef, _ = abstract_state(build, parts, optimizer)

    def init(key: jax.Array) -> nnx.State:
        return nnx.split(build(nnx.Rngs(params=key)))[1]

    # One program with a random generator for each of hundreds of arrays, run once. Level 1 of the
    # CPU compiler makes it in a third of the time; the numbers are the same. It is split outside,
    # so that all stages of a model share one program.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    params = jax.jit(init, compiler_options=options)(jax.random.key(seed))
    trainable, frozen = nnx.split_state(params, is_trainable(parts), ...)
    opt_state = jax.jit(optimizer.init)(trainable)
    return graphdef, TrainState(jnp.zeros((), jnp.int32), trainable, frozen, opt_state)
