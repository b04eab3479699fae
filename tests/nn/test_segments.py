"""Kernels of attention in packed rows, against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.nn import segments
from janus_jax.nn.attention import attention
from tests.nn.plain import segment_mask

T, H = 256, 128


@pytest.mark.parametrize(
    ("platform", "dtype", "kernel"),
    [
        ("tpu", "bfloat16", "splash"),
        ("tpu", "float32", "splash"),
        ("gpu", "bfloat16", "cudnn"),
        ("gpu", jnp.float16, "cudnn"),
        ("gpu", "float32", "chunked"),  # cuDNN refuses it
        ("cpu", "bfloat16", "chunked"),
    ],
)
def test_the_kernel_takes_the_dtype(platform, dtype, kernel):
    assert segments.kernel_of(platform, dtype) == kernel


@pytest.mark.parametrize("kernel", ["chunked", "splash"])
def test_outputs_and_gradients_are_those_of_plain_attention(kernel, monkeypatch):
    monkeypatch.setattr(segments, "CHUNK", 60)  # the last block is shorter
    q, k, v, g = (
        jax.random.normal(key, (1, T, 2, H)) for key in jax.random.split(jax.random.key(0), 4)
    )
    ids = jnp.asarray(np.repeat([1, 2, 3], [100, 56, 100])[None], jnp.int32)

    def packed(q, k, v):
        return segments.segment_attention(
            q, k, v, ids, scale=H**-0.5, kernel=kernel, interpret=kernel == "splash"
        )

    def plain(q, k, v):
        return attention(q, k, v, segment_mask(ids), scale=H**-0.5)

    got, back = jax.vjp(packed, q, k, v)
    want, plain_back = jax.vjp(plain, q, k, v)
    np.testing.assert_allclose(got, want, atol=2e-5)
    for a, b in zip(back(g), plain_back(g), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_blocks_of_queries_see_no_more_keys_than_they_may(monkeypatch):
    """No [T, T] array exists, and half of the scores are never made."""
    monkeypatch.setattr(segments, "CHUNK", 64)
    q = jnp.zeros((1, T, 2, H))
    ids = jnp.ones((1, T), jnp.int32)

    def loss(q, k, v):
        y = segments.segment_attention(q, k, v, ids, scale=1.0, kernel="chunked")
        return jnp.sum(y)

    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q).as_text()
    assert f"{T}x{T}x" not in text
    assert {f"x64x{keys}x" in text for keys in (64, 128, 192, 256)} == {True}
