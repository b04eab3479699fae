"""Cross-entropy over a large vocabulary, whose logits never exist all at once.

Dims: A positions, D width, V vocabulary, C chunks.

At 4096 tokens a row and 102,400 words the float32 logits of one row are 1.7 GB, and their gradient
as much again. So they are made for some positions at a time, and made once more in the backward
pass instead of being kept.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: Callable[[jax.Array], jax.Array],
    states: jax.Array,
    targets: jax.Array,
    *,
    chunk: int,
) -> jax.Array:
    """Negative log-likelihood of each target.

    Args:
      logits: the head, [..., D] -> [..., V] float32.
      states: [A, D].
      targets: int32 [A].
      chunk: positions whose logits exist at the same time, at least 1.

    Returns:
      float32 [A].
    """
    a, d = states.shape
    if a <= chunk:
        return _losses(logits, states, targets)
    chunks = -(-a // chunk)
    padding = chunks * chunk - a
    states = jnp.pad(states, ((0, padding), (0, 0))).reshape(chunk, chunks, d)
    targets = jnp.pad(targets, (0, padding)).reshape(chunk, chunks)
    # Chunk c holds the positions c, c + C, c + 2C, ...: where positions are spread over devices,
    # every device then works on every chunk, on positions of its own.
    one = jax.checkpoint(lambda part: _losses(logits, *part))
    losses = jax.lax.map(one, (states.swapaxes(0, 1), targets.T))
    return losses.T.reshape(-1)[:a]


def _losses(
    logits: Callable[[jax.Array], jax.Array], states: jax.Array, targets: jax.Array
) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits(states), targets)
