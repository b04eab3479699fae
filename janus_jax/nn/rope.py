"""Rotary position embedding of the rotate-half kind (Su et al., 2104.09864; Llama layout).

Dims: B batch, T tokens, N heads, H head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rope_tables(
    positions: jax.Array, *, head_dim: int, theta: float
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotation angles, always float32.

    Args:
      positions: [B, T] integer positions.
      head_dim: H.
      theta: base of the frequencies `theta ** (-2 i / H)`.

    Returns:
      cos, sin: [B, T, 1, H] float32, the H/2 angles twice.
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates [B, T, N, H] in float32; dtype kept."""
    y = x.astype(jnp.float32)
    first, second = jnp.split(y, 2, axis=-1)
    rotated = jnp.concatenate([-second, first], axis=-1)
    return (y * cos + rotated * sin).astype(x.dtype)
