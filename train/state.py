"""The training state: a plain pytree, split into what trains and what does not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.nn.layers import ShapesOnly
from janus_jax.sharding import DEFAULT_RULES, Rules, param_shardings


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


def split_state(
    params: nnx.State, parts: tuple[str, ...], optimizer: optax.GradientTransformation
) -> TrainState:
    """The state of the first step from parameters, abstract or not."""
    trainable, frozen = nnx.split_state(params, is_trainable(parts), ...)
    abstract = isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32) if abstract else jnp.zeros((), jnp.int32)
    init = functools.partial(jax.eval_shape, optimizer.init) if abstract else optimizer.init
    return TrainState(step, trainable, frozen, init(trainable))


def state_shardings(state: TrainState, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> TrainState:
    """Where every array of a state lies: optimizer moments as the parameters they belong to.

    Args:
      state: the state, abstract or not.
      mesh: the mesh.
      rules: the table.

    Raises:
      InputError: a rule does not fit a parameter.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    trainable = param_shardings(state.trainable, mesh, rules)

    def moments(part: Any) -> Any:
        # Moments are states like the parameters; everything else in the optimizer is a scalar.
        return trainable if isinstance(part, nnx.State) else whole

    opt_state = jax.tree.map(moments, state.opt_state, is_leaf=lambda x: isinstance(x, nnx.State))
    return TrainState(whole, trainable, param_shardings(state.frozen, mesh, rules), opt_state)


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
