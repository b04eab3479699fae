"""The optimizer of the published recipe: AdamW after clipping by the global norm."""

from __future__ import annotations

import optax

from train.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate as a function of the step (0 for the first update)."""
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    rest = max(steps - config.warmup_steps, 1)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, rest)
    else:
        after = optax.constant_schedule(config.learning_rate)
    # Counted from one, so that the first update already moves.
    return lambda step: optax.join_schedules([warmup, after], [config.warmup_steps])(step + 1)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip, AdamW, schedule."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
        ),
    )
