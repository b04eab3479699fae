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
    b, t, n, h = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(b, t, kv_heads, n // kv_heads, h)
    asked = precision(q.dtype)
    scores = jnp.einsum(
        "btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32, precision=asked
    )
    scores = scores * scale
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    y = jnp.einsum("bkgts,bskh->btkgh", weights, v, precision=asked)
    return y.reshape(b, t, n, h)


def causal_mask(valid: jax.Array) -> jax.Array:
    """Who may look where: backwards only, and never at padding.

    Args:
      valid: [B, T] bool, True for real tokens.

    Returns:
      [B, T, T] bool.
    """
    t = valid.shape[1]
    return jnp.tril(jnp.ones((t, t), bool))[None] & valid[:, None, :]


def segment_mask(segment_ids: jax.Array) -> jax.Array:
    """Who may look where in packed rows: backwards only, within one's own segment.

    Args:
      segment_ids: [B, T] int, equal for the tokens of one sample; 0 for padding, which neither
        looks nor is looked at.

    Returns:
      [B, T, T] bool.
    """
    t = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return jnp.tril(jnp.ones((t, t), bool))[None] & same & (segment_ids > 0)[:, None, :]
