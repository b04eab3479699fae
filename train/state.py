"""The training state: a plain pytree, split into what trains and what does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx


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


def is_trainable(parts: tuple[str, ...]) -> Callable[[Any, Any], bool]:
    """A filter for `nnx.split`: parameters below the named children of the model."""
    return lambda path, _: path[0] in parts


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
    filters = (is_trainable(parts), ...)
    graphdef = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), *filters)[0]

    def init(key: jax.Array) -> TrainState:
        _, trainable, frozen = nnx.split(build(nnx.Rngs(params=key)), *filters)
        return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable))

    return graphdef, jax.jit(init)(jax.random.key(seed))
