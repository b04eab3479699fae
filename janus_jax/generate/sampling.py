"""From logits to tokens: guidance, temperature, top-k, top-p, and keys that make pictures repeat.

Dims: N rows (one for each picture or conversation), K entries.

The key of a token depends on the seed, the text of the prompt, the number of the picture and the
step, never on the place in a batch: picture i of a prompt is the same whatever else is drawn.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    The numbers are traced, so that changing one compiles nothing; switching a filter on or off is
    another program, because sorting the vocabulary is not free.

    Attributes:
      temperature: scalar; 0 takes the likeliest token.
      top_k: scalar or None; only the k likeliest tokens (more where the k-th ties).
      top_p: scalar or None; only the fewest likeliest tokens that hold this probability.
    """

    temperature: Any
    top_k: Any = None
    top_p: Any = None


def prompt_digest(text: str) -> np.ndarray:
    """64 bits that stand for a prompt: uint32 [2], the same on every machine and version.

    Outer white space does not count, as it does not reach the model either.
    """
    digest = hashlib.sha256(text.strip().encode()).digest()
    return np.frombuffer(digest[:8], "<u4").astype(np.uint32)


def row_keys(seed: jax.Array, digests: jax.Array, indices: jax.Array) -> jax.Array:
    """The key of each picture.

    Args:
      seed: uint32 scalar, or [N] where each row has its own.
      digests: uint32 [N, 2], `prompt_digest` of each row's prompt.
      indices: int32 [N], number of the picture among those of its prompt.

    Returns:
      Typed keys [N].
    """

    def one(seed: jax.Array, digest: jax.Array, index: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        for word in (digest[0], digest[1], index):
            key = jax.random.fold_in(key, word)
        return key

    return jax.vmap(one)(jnp.broadcast_to(seed, indices.shape), digests, indices)


def guide(conditional: jax.Array, unconditional: jax.Array, weight: jax.Array) -> jax.Array:
    """Classifier-free guidance, `u + w (c - u)`, in the reference's order of operations."""
    return unconditional + weight * (conditional - unconditional)


def keep_top_k(logits: jax.Array, k: jax.Array | int) -> jax.Array:
    """Everything below the k-th largest logit of a row becomes -inf; [N, K] -> [N, K]."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    last = jnp.clip(jnp.asarray(k) - 1, 0, logits.shape[-1] - 1)
    return jnp.where(logits >= ordered[:, last][:, None], logits, -jnp.inf)


def keep_top_p(logits: jax.Array, p: jax.Array | float) -> jax.Array:
    """Keeps the likeliest tokens up to and including the one that reaches probability p.

    The likeliest token always stays; tokens that tie with the last one stay too. [N, K] -> [N, K].
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.where(before < p, ordered, jnp.inf)
    smallest = jnp.minimum(jnp.min(kept, axis=-1), ordered[:, 0])
    return jnp.where(logits >= smallest[:, None], logits, -jnp.inf)


def sample(keys: jax.Array, step: jax.Array, logits: jax.Array, how: Sampling) -> jax.Array:
    """One token for each row.

    Args:
      keys: typed keys [N], one for each row.
      step: int32 scalar or [N], folded into the keys.
      logits: float32 [N, K].
      how: temperature, then top-k, then top-p.

    Returns:
      int32 [N].
    """
    scaled = logits / jnp.where(how.temperature > 0, how.temperature, 1.0)
    if how.top_k is not None:
        scaled = keep_top_k(scaled, how.top_k)
    if how.top_p is not None:
        scaled = keep_top_p(scaled, how.top_p)
    steps = jnp.broadcast_to(jnp.asarray(step), keys.shape)
    drawn = jax.vmap(lambda key, i, row: jax.random.categorical(jax.random.fold_in(key, i), row))(
        keys, steps, scaled
    )
    greedy = jnp.argmax(logits, axis=-1)
    return jnp.where(how.temperature > 0, drawn, greedy).astype(jnp.int32)


def bucket_length(length: int) -> int:
    """The padded length of a prompt: 32, 64, 128, then multiples of 128.

    Few lengths, so that the next prompt finds its program compiled. All are multiples of 32: rows
    padded on the left then keep their place in the lanes of vectorised sums, and the padding only
    adds exact zeros in front.
    """
    if length <= 64:
        return 32 if length <= 32 else 64
    return -(-length // 128) * 128
