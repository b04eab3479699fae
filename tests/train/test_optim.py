"""Schedule and optimizer against numbers worked out by hand and in plain NumPy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from train.config import OptimizerConfig
from train.optim import learning_rate, make_optimizer


def rates(config: OptimizerConfig, steps: int) -> list[float]:
    schedule = learning_rate(config, steps)
    return [float(np.asarray(schedule(step))) for step in range(steps)]


def test_a_constant_rate_is_reached_on_the_last_step_of_the_warm_up():
    config = OptimizerConfig(learning_rate=4.0, warmup_steps=4)
    assert rates(config, 7) == pytest.approx([1, 2, 3, 4, 4, 4, 4])


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert rates(OptimizerConfig(learning_rate=2.0), 3) == pytest.approx([2, 2, 2])


def test_cosine_goes_from_the_peak_to_zero_on_the_last_step():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, schedule="cosine")
    half = np.cos(np.pi * np.arange(5) / 4) / 2 + 0.5
    assert rates(config, 6) == pytest.approx([0.5, *half], abs=1e-7)


def adamw(config: OptimizerConfig, steps: int, start: np.ndarray, grads: np.ndarray) -> np.ndarray:
    """Loshchilov and Hutter, algorithm 2, after clipping by the norm."""
    x, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, grad in enumerate(grads, 1):
        g = grad * min(1.0, config.clip_norm / np.linalg.norm(grad))
        m = config.b1 * m + (1 - config.b1) * g
        v = config.b2 * v + (1 - config.b2) * g**2
        step = (m / (1 - config.b1**t)) / (np.sqrt(v / (1 - config.b2**t)) + 1e-8)
        x = x - rates(config, steps)[t - 1] * (step + config.weight_decay * x)
    return x


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("scale", [0.1, 50.0], ids=["below the clip", "clipped"])
def test_three_steps_equal_plain_numpy(decay, scale):
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=2, weight_decay=decay)
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=4), scale * rng.normal(size=(3, 4))
    optimizer = make_optimizer(config, 5)
    x: Any = jnp.asarray(start, jnp.float32)
    state = optimizer.init(x)
    for grad in grads:
        update, state = optimizer.update(jnp.asarray(grad, jnp.float32), state, x)
        x = x + update
    np.testing.assert_allclose(x, adamw(config, 5, start, grads), rtol=2e-5)
