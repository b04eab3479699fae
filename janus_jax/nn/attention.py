"""Scaled dot-product attention.

Dims: B batch, T queries, S keys, N query heads, K key heads, H head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from janus_jax.nn.layers import precision


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, *, scale: float
) -> jax.Array:
    """Softmax attention; scores and softmax in float32.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H], N a multiple of K.
      v: [B, S, K, H].
      mask: [B, T, S] bool, True where a query may look; None for full attention.
      scale: multiplies the scores (H ** -0.5 everywhere in Janus).

    Returns:
      [B, T, N, H] in q's dtype. A query that may look nowhere gets the mean of all values: finite,
      and ignored by every caller (such queries are padding).
    """
    scores = _scores(q, k, "bskh", mask, scale)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return _mix(weights, v, "bskh").reshape(q.shape)


def cached_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, scale: float
) -> jax.Array:
    """`attention` over the keys and values of a cache, k and v [B, K, S, H]."""
    scores = _scores(q, k, "bksh", mask, scale)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return _mix(weights, v, "bksh").reshape(q.shape)


def cached_attention_and_own(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    scale: float,
) -> jax.Array:
    """`cached_attention` of one token whose own key and value are not in the cache yet.

    Args:
      q: [B, 1, N, H].
      k_cache: [B, K, S, H].
      v_cache: [B, K, S, H].
      k: [B, 1, K, H], key of the token, which always looks at itself.
      v: [B, 1, K, H].
      mask: [B, 1, S] bool, False at the slot that the token will take.
      scale: multiplies the scores.

    Returns:
      [B, 1, N, H] in q's dtype.
    """
    cached, own = _scores(q, k_cache, "bksh", mask, scale), _scores(q, k, "bskh", None, scale)
    largest = jnp.maximum(jnp.max(cached, axis=-1, keepdims=True), own)
    cached, own = jnp.exp(cached - largest), jnp.exp(own - largest)
    total = jnp.sum(cached, axis=-1, keepdims=True) + own
    cached, own = (cached / total).astype(q.dtype), (own / total).astype(q.dtype)
    return (_mix(cached, v_cache, "bksh") + _mix(own, v, "bskh")).reshape(q.shape)


def _scores(
    q: jax.Array, k: jax.Array, axes: str, mask: jax.Array | None, scale: float
) -> jax.Array:
    """Scores float32 [B, K, N / K, T, S] of q [B, T, N, H]; `axes` are those of k."""
    b, t, n, h = q.shape
    kv_heads = k.shape[axes.index("k")]
    scores = jnp.einsum(
        f"btkgh,{axes}->bkgts",
        q.reshape(b, t, kv_heads, n // kv_heads, h),
        k,
        preferred_element_type=jnp.float32,
        precision=precision(q.dtype),
    )
    scores = scores * scale
    if mask is None:
        return scores
    return jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)


def _mix(weights: jax.Array, v: jax.Array, axes: str) -> jax.Array:
    """Weights [B, K, N / K, T, S] of values -> [B, T, K, N / K, H]; `axes` are those of v."""
    return jnp.einsum(f"bkgts,{axes}->btkgh", weights, v, precision=precision(weights.dtype))


def causal_mask(valid: jax.Array) -> jax.Array:
    """Who may look where: backwards only, and never at padding.

    Args:
      valid: [B, T] bool, True for real tokens.

    Returns:
      [B, T, T] bool.
    """
    t = valid.shape[1]
    return jnp.tril(jnp.ones((t, t), bool))[None] & valid[:, None, :]
