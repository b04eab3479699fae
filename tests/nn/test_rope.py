"""RoPE as literal numbers: the rotate-half kind, float32 tables."""

import jax.numpy as jnp
import numpy as np

from janus_jax.nn.rope import apply_rope, rope_tables


def test_tables_hold_the_angles_twice():
    positions = jnp.array([[0, 1, 3]])
    cos, sin = rope_tables(positions, head_dim=4, theta=100.0)
    # Frequencies 100 ** (0, -1/2): 1 and 0.1.
    angles = np.array([[0.0, 0.0], [1.0, 0.1], [3.0, 0.3]], np.float32)
    angles = np.concatenate([angles, angles], -1)
    assert cos.shape == sin.shape == (1, 3, 1, 4)
    assert cos.dtype == sin.dtype == jnp.float32
    np.testing.assert_allclose(cos[0, :, 0], np.cos(angles), rtol=1e-6)
    np.testing.assert_allclose(sin[0, :, 0], np.sin(angles), rtol=1e-6)


def test_a_quarter_turn_pairs_the_halves():
    x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    cos, sin = jnp.zeros((1, 1, 1, 4)), jnp.ones((1, 1, 1, 4))
    # Element i turns with element i + H/2, not with its neighbour.
    assert apply_rope(x, cos, sin).ravel().tolist() == [-3.0, -4.0, 1.0, 2.0]


def test_position_zero_changes_nothing_and_bfloat16_stays_bfloat16():
    x = jnp.arange(8, dtype=jnp.bfloat16).reshape(1, 1, 1, 8)
    y = apply_rope(x, *rope_tables(jnp.zeros((1, 1), jnp.int32), head_dim=8, theta=1e4))
    assert y.dtype == jnp.bfloat16 and y.tolist() == x.tolist()


def test_products_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 16), np.float32)) for _ in range(2))

    def product(at_q: int, at_k: int) -> float:
        turned = (
            apply_rope(x, *rope_tables(jnp.array([[at]]), head_dim=16, theta=1e4))
            for x, at in ((q, at_q), (k, at_k))
        )
        return float(jnp.vdot(*turned))

    np.testing.assert_allclose(product(7, 4), product(1003, 1000), rtol=1e-3)
    assert abs(product(7, 4) - product(7, 5)) > 1e-3


def test_large_positions_keep_float32_angles_under_bfloat16():
    # In bfloat16 16383 would round to 16384, a full radian away.
    cos, _ = rope_tables(jnp.array([[16383]]), head_dim=2, theta=1e4)
    np.testing.assert_allclose(float(cos[0, 0, 0, 0]), np.cos(16383.0), atol=2e-3)
