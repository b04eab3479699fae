"""The loss of the three stages: cross-entropy on answers and on image tokens.

Dims: B batch, T tokens, A answer tokens, P image tokens, D width, S picture side.

Every sample ends in the last column (rows are padded on the left, as at inference), so each head
runs on a static slice: the text head on the last A positions, the image head on the last P.
The mean is over all loss tokens of the step, whatever their kind (report, section 2.2: no weights
between tasks are given).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from janus_jax.models.janus import JanusModel

Batch = dict[str, Any]
Sums = tuple[jax.Array, jax.Array]


def positions(mask: jax.Array) -> jax.Array:
    """Positions of left-padded rows: mask [B, T] -> int32 [B, T], 0 in the padding."""
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


def text_loss(model: JanusModel, batch: Batch) -> Sums:
    """Cross-entropy on the answers of understanding or text samples.

    Args:
      model: the model.
      batch: `tokens` int32 [B, T], `mask` bool [B, T], `answer` bool [B, A] (True where one of the
        last A tokens is to be predicted); with pictures also `pixels` uint8 [B, S, S, 3] and
        `image_index` int32 [B, T].

    Returns:
      Summed loss and number of tokens.
    """
    tokens, mask, answer = batch["tokens"], batch["mask"], batch["answer"]
    features = None
    if "pixels" in batch:
        features = model.encode_image(batch["pixels"].astype(jnp.float32) / 127.5 - 1.0)
    x = model.embed(tokens, features, batch.get("image_index"))
    h = model.hidden(x, positions(mask), mask)
    a = answer.shape[1]
    logits = model.text_logits(h[:, -a - 1 : -1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, -a:])
    return jnp.sum(losses * answer), jnp.sum(answer)


def image_loss(model: JanusModel, batch: Batch) -> Sums:
    """Cross-entropy on the codes of generation samples.

    Args:
      model: the model.
      batch: prompts `tokens` int32 [B, T] and `mask` bool [B, T], ending in begin-of-image; `codes`
        int32 [B, P].

    Returns:
      Summed loss and number of tokens.
    """
    codes = batch["codes"]
    p = codes.shape[1]
    x = jnp.concatenate(
        [model.embed(batch["tokens"]), model.embed_image_tokens(codes[:, :-1])], axis=1
    )
    mask = jnp.pad(batch["mask"], ((0, 0), (0, p - 1)), constant_values=True)
    h = model.hidden(x, positions(mask), mask)
    losses = optax.softmax_cross_entropy_with_integer_labels(model.image_logits(h[:, -p:]), codes)
    return jnp.sum(losses), jnp.asarray(codes.size)


def loss(
    model: JanusModel, batch: dict[str, Batch], text_weight: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of a mixed step.

    Args:
      model: the model.
      batch: for each kind in the step (`understanding`, `text`, `generation`) its arrays.
      text_weight: weight of a text token beside an image token.

    Returns:
      The loss, and the plain mean of each kind.
    """
    total, count, metrics = jnp.zeros(()), jnp.zeros(()), {}
    for kind, arrays in batch.items():
        generation = kind == "generation"
        summed, n = (image_loss if generation else text_loss)(model, arrays)
        weight = 1.0 if generation else text_weight
        total, count = total + weight * summed, count + weight * n
        metrics[f"{kind}_loss"] = summed / n
    return total / count, metrics
