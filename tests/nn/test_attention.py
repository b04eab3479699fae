"""Masks and attention as literal arrays."""

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.nn.attention import (
    attention,
    cached_attention,
    cached_attention_and_own,
    causal_mask,
)
from tests.nn.plain import segment_mask


def test_causal_mask_of_a_left_padded_row():
    valid = jnp.array([[True, True, True], [False, True, True]])
    assert causal_mask(valid).astype(int).tolist() == [
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
        [[0, 0, 0], [0, 1, 0], [0, 1, 1]],
    ]


def test_segment_mask_of_packed_rows():
    ids = jnp.array([[1, 1, 2, 2, 0], [1, 2, 2, 0, 0]])
    assert segment_mask(ids).astype(int).tolist() == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]],
        [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    ]


def test_weights_by_hand():
    # Scores 0 and ln 3 at scale 1: weights 1/4 and 3/4.
    q = jnp.ones((1, 1, 1, 1))
    k = jnp.array([0.0, np.log(3.0)]).reshape(1, 2, 1, 1)
    v = jnp.array([[4.0, 0.0], [0.0, 4.0]]).reshape(1, 2, 1, 2)
    full = attention(q, k, v[..., :1], None, scale=1.0)
    np.testing.assert_allclose(full.ravel(), [1.0], rtol=1e-6)
    full = attention(q, k, v[..., 1:], None, scale=1.0)
    np.testing.assert_allclose(full.ravel(), [3.0], rtol=1e-6)
    # Scale multiplies the scores: at 2 the weights are 1/10 and 9/10.
    np.testing.assert_allclose(
        attention(q, k, v[..., 1:], None, scale=2.0).ravel(), [3.6], rtol=1e-6
    )


def test_masked_keys_have_no_weight_at_all():
    q = jnp.ones((1, 2, 1, 2))
    k = jnp.array([[9.0, 9.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
    v = jnp.array([[1e30, 1e30], [1.0, 2.0]]).reshape(1, 2, 1, 2)
    mask = jnp.array([[[False, True], [False, True]]])
    out = attention(q, k, v, mask, scale=0.5)
    assert out.tolist() == [[[[1.0, 2.0]], [[1.0, 2.0]]]]


def test_a_query_that_sees_nothing_is_finite():
    q = k = v = jnp.ones((1, 1, 1, 2))
    out = attention(q, k, v, jnp.zeros((1, 1, 1), bool), scale=1.0)
    assert out.tolist() == [[[[1.0, 1.0]]]]


def test_query_heads_share_key_heads_in_groups():
    # Four query heads on two key heads: 0, 1 read the first, 2, 3 the second.
    q = jnp.ones((1, 1, 4, 2))
    k = jnp.zeros((1, 1, 2, 2))
    v = jnp.array([[10.0, 11.0], [20.0, 21.0]]).reshape(1, 1, 2, 2)
    out = attention(q, k, v, None, scale=1.0)
    assert out[0, 0].tolist() == [[10, 11], [10, 11], [20, 21], [20, 21]]


def test_softmax_is_float32_under_bfloat16():
    # Scores 256 and 257: bfloat16 cannot tell them apart, float32 can.
    q = jnp.array([16.0, 1.0], jnp.bfloat16).reshape(1, 1, 1, 2)
    k = jnp.array([[16.0, 0.0], [16.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
    v = jnp.array([[0.0, 0.0], [1.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
    out = attention(q, k, v, None, scale=1.0)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(out[0, 0, 0, 0]), 1 / (1 + np.exp(-1)), rtol=1e-2)


def test_cached_keys_are_read_heads_first():
    q = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))
    k, v = jax.random.normal(jax.random.key(1), (2, 2, 5, 2, 8))
    mask = jnp.arange(5) < jnp.array([[[2], [3], [4]], [[5], [1], [2]]])
    turned = cached_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask, scale=0.3)
    np.testing.assert_allclose(turned, attention(q, k, v, mask, scale=0.3), atol=1e-6)


def test_a_token_that_is_not_in_the_cache_yet_looks_at_itself():
    q = jax.random.normal(jax.random.key(0), (2, 1, 4, 8))
    k, v = 3 * jax.random.normal(jax.random.key(1), (2, 2, 2, 5, 8))
    mask = jnp.array([[[True, True, True, False, False]], [[False, True, True, False, False]]])
    slot = 3
    seen = mask.at[..., slot].set(True)
    want = cached_attention(q, k, v, seen, scale=0.3)
    own_k, own_v = (x[:, :, slot][:, None] for x in (k, v))
    # What the slot holds before must not count, however large.
    stale_k, stale_v = k.at[:, :, slot].set(50.0), v.at[:, :, slot].set(1e30)
    got = cached_attention_and_own(q, stale_k, stale_v, own_k, own_v, mask, scale=0.3)
    np.testing.assert_allclose(got, want, atol=1e-6)
    # A first token sees itself alone.
    nothing = cached_attention_and_own(
        q, stale_k, stale_v, own_k, own_v, jnp.zeros((2, 1, 5), bool), scale=0.3
    )
    np.testing.assert_allclose(nothing[:, 0], jnp.repeat(own_v[:, 0], 2, axis=1), rtol=1e-6)
