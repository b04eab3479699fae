"""Cross-entropy over a large vocabulary, whose logits never exist all at once.

Dims: G groups, A positions of a group, D width, V vocabulary.

At 4096 tokens a row and 102,400 words the float32 logits of one row are 1.7 GB, and their gradient
as much again. So they are made for some positions at a time, and made once more in the backward
pass instead of being kept.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from janus_jax.sharding import constrain


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
      states: [G, A, D]; over a mesh groups are spread over devices.
      targets: int32 [G * A].
      chunk: positions of each group whose logits exist at the same time, at least 1.

    Returns:
      float32 [G * A].
    """
    groups, each, width = states.shape
    targets = targets.reshape(groups, each)
    if each <= chunk:
        return _losses(logits, states, targets).reshape(-1)
    chunks = -(-each // chunk)
    # As equal as they can be, so that little is padded.
    chunk = -(-each // chunks)
    padding = chunks * chunk - each
    states = jnp.pad(states, ((0, 0), (0, padding), (0, 0)))
    parts = (
        states.reshape(groups, chunks, chunk, width).swapaxes(0, 1),
        jnp.pad(targets, ((0, 0), (0, padding))).reshape(groups, chunks, chunk).swapaxes(0, 1),
    )
    one = jax.checkpoint(lambda part: _losses(logits, *part))
    losses = jax.lax.map(one, parts)
    return losses.swapaxes(0, 1).reshape(groups, -1)[:, :each].reshape(-1)


def _losses(
    logits: Callable[[jax.Array], jax.Array], states: jax.Array, targets: jax.Array
) -> jax.Array:
    states = constrain(states, "batch", None, None)
    return optax.softmax_cross_entropy_with_integer_labels(logits(states), targets)
