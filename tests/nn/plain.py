"""The plain reference that attention in packed rows is held to."""

import jax
import jax.numpy as jnp


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
