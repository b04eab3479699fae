"""The scanned model's own way of doing things, against the plain one's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.nn.rope import apply_rope, rope_tables
from train.scanned import rotated


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_halves_swapped_by_a_product_are_those_of_rope(dtype):
    """Exactly: a product with ones and minus ones rounds nothing."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 16), dtype)
    rope = rope_tables(jnp.arange(10).reshape(2, 5) * 7, head_dim=16, theta=1e4)
    want = apply_rope(x, *rope)
    got = rotated(x.swapaxes(1, 2), *rope).swapaxes(1, 2)
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))
