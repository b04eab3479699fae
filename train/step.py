"""One optimizer step as one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import optax
from flax import nnx

from train.state import TrainState

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Metrics]]


def make_step(
    graphdef: Any,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    seed: int,
    shardings: TrainState | None = None,
) -> Any:
    """The compiled step.

    Only `state.trainable` is differentiated, so the frozen parts cost no gradient.

    Args:
      graphdef: static graph of the module, split as `train.state.create_state` splits it.
      loss_fn: `loss_fn(model, batch, key) -> (loss, metrics)`.
      optimizer: the optimizer.
      seed: randomness inside the loss is a function of (seed, step).
      shardings: of the state, as `train.state.state_shardings` gives them; the step is then called,
        or lowered, under `jax.set_mesh`. None: everything is on one device.

    Returns:
      `step(state, batch) -> (state, metrics)`, jitted; the old state's memory is reused.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss(trainable: nnx.State) -> tuple[jax.Array, Metrics]:
            return loss_fn(nnx.merge(graphdef, trainable, state.frozen), batch, key)

        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.trainable)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        metrics = {"loss": value, **metrics, "grad_norm": optax.tree.norm(grads)}
        new = replace(
            state,
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, updates),
            opt_state=opt_state,
        )
        return new, metrics

    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
