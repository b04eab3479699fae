"""The training state: a plain pytree, split into what trains and what does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.sharding import DEFAULT_RULES, Rules, param_shardings
from train.config import TrainConfig
from train.guard import GuardState, first_guard


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a run carries from step to step.

    Attributes:
      step: int32 scalar, steps made; those that bad numbers skipped count too.
      trainable: parameters that train.
      frozen: parameters that do not: no gradient, no optimizer state.
      opt_state: optimizer state of `trainable`.
      guard: what is remembered to tell bad numbers.
    """

    step: jax.Array
    trainable: nnx.State
    frozen: nnx.State
    opt_state: Any
    guard: GuardState

    @property
    def params(self) -> nnx.State:
        """All parameters, trained or not, as one state."""
        return nnx.merge_state(self.trainable, self.frozen)


def is_trainable(parts: tuple[str, ...]) -> Callable[[Any, Any], bool]:
    """A filter for `nnx.split`: parameters below the named children of the model."""
    return lambda path, _: path[0] in parts


def stored(params: nnx.State, config: TrainConfig) -> nnx.State:
    """Parameters, abstract or not, in the dtypes that a run keeps them in."""

    def cast(part: str) -> Any:
        dtype = jnp.dtype(config.stored_dtype(part))

        def one(x: Any) -> Any:
            if isinstance(x, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(x.shape, dtype)
            return x.astype(dtype)

        return jax.tree.map(one, params[part])

    return nnx.State({part: cast(part) for part in params})


def abstract_state(
    params: nnx.State, parts: tuple[str, ...], optimizer: optax.GradientTransformation
) -> TrainState:
    """What a state is made of, without making it; a checkpoint is restored into it.

    Args:
      params: all parameters, as shapes.
      parts: names of the children that train.
      optimizer: the optimizer.

    Returns:
      The state with `jax.ShapeDtypeStruct` leaves.
    """
    trainable, frozen = nnx.split_state(params, is_trainable(parts), ...)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    opt_state, guard = jax.eval_shape(optimizer.init, trainable), jax.eval_shape(first_guard)
    return TrainState(step, trainable, frozen, opt_state, guard)


def state_shardings(state: TrainState, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> TrainState:
    """Where every array of a state lies: optimizer moments as the parameters they belong to.

    Args:
      state: the state, abstract or not.
      mesh: the mesh.
      rules: the table.

    Raises:
      InputError: a rule does not fit a parameter.
    """
    whole: Any = NamedSharding(mesh, PartitionSpec())
    trainable = param_shardings(state.trainable, mesh, rules)

    def moments(part: Any) -> Any:
        # Moments are states like the parameters; everything else in the optimizer is a scalar.
        return trainable if isinstance(part, nnx.State) else whole

    opt_state = jax.tree.map(moments, state.opt_state, is_leaf=lambda x: isinstance(x, nnx.State))
    frozen, guard = param_shardings(state.frozen, mesh, rules), jax.tree.map(moments, state.guard)
    return TrainState(whole, trainable, frozen, opt_state, guard)


def create_params(
    init: Callable[[jax.Array], nnx.State],
    seed: int,
    given: nnx.State,
    shardings: nnx.State,
) -> nnx.State:
    """All parameters of a first state: those that are given, the others fresh.

    Args:
      init: makes all parameters from a key; what is given is not computed.
      seed: seed of the initialisation.
      given: children of the model that come from elsewhere, where `shardings` wants them.
      shardings: of all parameters.

    Returns:
      The parameters.
    """
    missing = [part for part in shardings if part not in given]
    if not missing:
        return nnx.State({part: given[part] for part in shardings})

    def fresh(key: jax.Array) -> nnx.State:
        params = init(key)
        return nnx.State({part: params[part] for part in missing})

    # One program with a random generator for each of hundreds of arrays, run once. Level 1 of the
    # CPU compiler makes it in a third of the time; the numbers are the same.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    where = nnx.State({part: shardings[part] for part in missing})
    made = jax.jit(fresh, out_shardings=where, compiler_options=options)(jax.random.key(seed))
    return nnx.State({part: (given if part in given else made)[part] for part in shardings})


def first_state(
    params: nnx.State,
    parts: tuple[str, ...],
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
) -> TrainState:
    """The state that a run begins with.

    Args:
      params: all parameters, where `shardings` wants them.
      parts: names of the children that train.
      optimizer: the optimizer.
      shardings: of the state.
    """
    trainable, frozen = nnx.split_state(params, is_trainable(parts), ...)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(trainable)
    step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
    guard = jax.device_put(first_guard(), shardings.guard)
    return TrainState(step, trainable, frozen, opt_state, guard)
