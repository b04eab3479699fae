"""One optimizer step as one compiled program, on one device or over a mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from train.guard import choose, judge, report
from train.state import TrainState
from train.watch.config import GuardConfig

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]
LossFn = Callable[[Any, Batch, jax.Array], Sums]


def make_step(
    graphdef: Any,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    shardings: TrainState | None = None,
    accumulate: int = 1,
    compute_dtype: Any = jnp.float32,
    guard: GuardConfig = GuardConfig(),  # noqa: B008  (frozen)
    compiler_options: dict[str, str] | None = None,
) -> Any:
    """The compiled step.

    Only `state.trainable` is differentiated, so the frozen parts cost no gradient.

    Args:
      graphdef: static graph of the module.
      loss_fn: `loss_fn(model, batch, key)` gives sums and what to divide them by; the quotient of
        `loss` is what is minimised.
      optimizer: the optimizer.
      seed: randomness inside the loss is a function of (seed, step).
      shardings: of the state, as `train.state.state_shardings` gives them; the step is then called,
        or lowered, under `jax.set_mesh`. None: everything is on one device.
      accumulate: micro-steps; above 1 the batch has an axis of them in front, and the step is that
        of all their samples together.
      compute_dtype: parameters are cast to it before they are gathered and used; the state keeps
        its own dtype.
      guard: what a step with bad numbers is; its update is left out, see `train.guard`.
      compiler_options: of XLA, see `train.plan.chips.compiler_options`.

    Returns:
      `step(state, batch) -> (state, metrics)`, jitted; the old state's memory is reused.
    """

    def cast(params: nnx.State) -> nnx.State:
        return jax.tree.map(lambda x: x.astype(compute_dtype), params)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss(trainable: nnx.State, part: Batch) -> tuple[jax.Array, Sums]:
            model = nnx.merge(graphdef, cast(trainable), cast(state.frozen))
            sums = loss_fn(model, part, key)
            return sums["loss"][0], sums

        slope = jax.grad(loss, has_aux=True)
        if accumulate == 1:
            grads, sums = slope(state.trainable, batch)
        else:

            def add(total: Any, part: Batch) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, slope(state.trainable, part)), None

            first = jax.tree.map(lambda x: x[0], batch)
            zero = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype),
                jax.eval_shape(slope, state.trainable, first),
            )
            if shardings is not None:
                grads = jax.lax.with_sharding_constraint(zero[0], shardings.trainable)
                zero = (grads, zero[1])
            (grads, sums), _ = jax.lax.scan(add, zero, batch)
        grads = jax.tree.map(lambda g: g / sums["loss"][1], grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        updated = (optax.apply_updates(state.trainable, updates), opt_state)
        metrics = {**quotients(sums), "grad_norm": optax.tree.norm(grads)}
        good, after = judge(state.guard, metrics["loss"], metrics["grad_norm"], guard)
        trainable, opt_state = choose(good, updated, (state.trainable, state.opt_state))
        new = replace(
            state,
            step=state.step + 1,
            trainable=trainable,
            opt_state=opt_state,
            guard=after,
        )
        return new, {**metrics, **report(good, state.guard, after)}

    given: dict[str, Any] = {} if shardings is None else {"out_shardings": (shardings, None)}
    return jax.jit(step, donate_argnums=0, compiler_options=compiler_options, **given)


def quotients(sums: Sums) -> Metrics:
    """Means of sums; a kind's mean loss comes with the tokens that it is the mean of."""
    metrics: Metrics = {}
    for name, (total, count) in sums.items():
        metrics[name] = jnp.where(count > 0, total / jnp.maximum(count, 1e-9), 0.0)
        if name.endswith("_loss"):
            metrics[f"{name.removesuffix('_loss')}_tokens"] = count
    return metrics
