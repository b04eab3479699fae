"""What a run does about bad numbers: NaN, infinity, and spikes of the gradient.

A step is bad when its loss or its gradient's norm is not finite, or when the norm is more than
`spike_factor` times what it usually is. The usual norm is a running geometric mean of the good
steps' norms: a plain mean over the first `memory` of them, an exponential one after that. Nothing
counts as a spike during the first `settle` good steps.

A bad step changes nothing: parameters, moments and the optimizer's own step count stay as they are,
to the bit. The data goes on, so the same batch is not met again. The batch's sample ids are written
to `bad_steps.jsonl`. After `max_skipped` bad steps in a row (one, under the policy `stop`) the run
ends with an error: something is wrong that skipping does not mend.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from janus_jax.errors import RunFailed
from janus_jax.hosts import is_first
from train.metrics import forget_after
from train.watch.config import GuardConfig

Tree = TypeVar("Tree")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GuardState:
    """What the guard remembers from step to step; all scalars, part of the training state.

    Attributes:
      log_norm: float32, logarithm of the usual gradient norm.
      good: int32, good steps so far.
      skipped: int32, bad steps so far.
      in_a_row: int32, bad steps since the last good one.
    """

    log_norm: jax.Array
    good: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array


def first_guard() -> GuardState:
    """The guard of a run that has made no step."""
    # Arrays of their own, for the step gives the memory of each away.
    counts = (jnp.zeros((), jnp.int32) for _ in range(3))
    return GuardState(jnp.zeros((), jnp.float32), *counts)


def judge(
    guard: GuardState, loss: jax.Array, grad_norm: jax.Array, config: GuardConfig
) -> tuple[jax.Array, GuardState]:
    """Whether a step's numbers are good; a pure function, called inside the compiled step.

    Args:
      guard: the guard before the step.
      loss: scalar.
      grad_norm: scalar, before clipping.
      config: the policy.

    Returns:
      A bool scalar, and the guard after the step.
    """
    norm = grad_norm.astype(jnp.float32)
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    if config.spike_factor:
        usual = jnp.exp(guard.log_norm)
        good &= (guard.good < config.settle) | (norm <= config.spike_factor * usual)
    # A gradient of exactly nothing has no logarithm.
    log_norm = jnp.log(jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
    weight = 1 / (jnp.minimum(guard.good, config.memory - 1) + 1).astype(jnp.float32)
    one, zero = jnp.ones((), jnp.int32), jnp.zeros((), jnp.int32)
    after_good = GuardState(
        guard.log_norm + weight * (log_norm - guard.log_norm), guard.good + one, guard.skipped, zero
    )
    after_bad = GuardState(guard.log_norm, guard.good, guard.skipped + one, guard.in_a_row + one)
    return good, choose(good, after_good, after_bad)


def choose(good: jax.Array, new: Tree, old: Tree) -> Tree:
    """`new` after a good step, `old` to the bit after a bad one.

    Args:
      good: bool scalar.
      new: a tree of arrays.
      old: a tree of the same form.
    """
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def report(good: jax.Array, before: GuardState, after: GuardState) -> dict[str, Any]:
    """What a step's metrics say of the guard.

    Args:
      good: of `judge`.
      before: the guard before the step.
      after: the guard after it.

    Returns:
      `skipped`, the bad steps so far, and, for `BadSteps`, `guard`.
    """
    details = {"bad": ~good, "in_a_row": after.in_a_row, "usual": jnp.exp(before.log_norm)}
    return {"skipped": after.skipped, "guard": details}


class BadSteps:
    """Writes bad steps down and ends the run when there are too many in a row.

    The numbers of a step are read when the next one is handed over, so that the host never waits
    for the step in flight.

    Args:
      path: the JSON-lines file; made at the first bad step. Of several processes the first writes.
      config: the policy.
      ids: names of the samples of a step, counted from 0.
      start: steps made before; records of later steps are removed.
    """

    def __init__(
        self, path: Path, config: GuardConfig, ids: Callable[[int], Sequence[str]], start: int
    ):
        self._path, self._config, self._ids = path, config, ids
        self._pending: tuple[int, dict[str, Any]] | None = None
        if is_first():
            forget_after(path, start)

    def add(self, step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Takes the (still computing) metrics of `step`, counted from 1; looks at those before.

        Returns:
          The metrics without `guard`, for the metrics file.

        Raises:
          RunFailed: the step before was one bad step too many.
        """
        self.flush()
        self._pending = (step, {name: metrics[name] for name in ("loss", "grad_norm", "guard")})
        return {name: value for name, value in metrics.items() if name != "guard"}

    def flush(self) -> None:
        """Looks at what is pending; waits for it to be computed.

        Raises:
          RunFailed: that step was one bad step too many.
        """
        if self._pending is None:
            return
        (step, arrays), self._pending = self._pending, None
        values = jax.device_get(arrays)
        guard = values["guard"]
        if not guard["bad"]:
            return
        loss, norm, usual = float(values["loss"]), float(values["grad_norm"]), float(guard["usual"])
        in_a_row = int(guard["in_a_row"])
        reason = _reason(loss, norm, usual)
        record = {
            "step": step,
            "reason": reason,
            # As text: JSON has no NaN.
            "loss": str(loss),
            "grad_norm": str(norm),
            "usual_grad_norm": usual,
            "samples": list(self._ids(step - 1)),
        }
        if is_first():
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if in_a_row >= self._config.limit:
            raise RunFailed(
                f"step {step}: {reason}; bad steps in a row: {in_a_row}, at which --guard.policy "
                f"{self._config.policy} ends the run; none of them changed the model, and their "
                f"samples are listed in {self._path}"
            )


def _reason(loss: float, norm: float, usual: float) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the gradient's norm is {norm}"
    return f"the gradient's norm is {norm:.4g}, {norm / usual:.3g} times the usual"
