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


def with_noise(codes: jax.Array, noise: float, num_codes: int, key: jax.Array) -> jax.Array:
    """Replaces some codes by random ones, so that what follows is told by the prompt as well.

    Args:
      codes: int32 [B, P].
      noise: each row draws the share to replace evenly from 0 to this.
      num_codes: K.
      key: source of the noise.

    Returns:
      int32 [B, P].
    """
    share_key, place_key, code_key = jax.random.split(key, 3)
    share = jax.random.uniform(share_key, (codes.shape[0], 1), maxval=noise)
    random = jax.random.randint(code_key, codes.shape, 0, num_codes, codes.dtype)
    return jnp.where(jax.random.uniform(place_key, codes.shape) < share, random, codes)


def image_loss(model: JanusModel, batch: Batch, noise: float, key: jax.Array) -> Sums:
    """Cross-entropy on the codes of generation samples.

    Args:
      model: the model.
      batch: prompts `tokens` int32 [B, T] and `mask` bool [B, T], ending in begin-of-image; `codes`
        int32 [B, P].
      noise: see `with_noise`; it goes into the inputs, never into the targets.
      key: source of the noise.

    Returns:
      Summed loss and number of tokens.
    """
    codes = batch["codes"]
    p = codes.shape[1]
    inputs = codes[:, :-1]
    if noise:
        inputs = with_noise(inputs, noise, model.gen_embed.embedding.shape[0], key)
    x = jnp.concatenate([model.embed(batch["tokens"]), model.embed_image_tokens(inputs)], axis=1)
    mask = jnp.pad(batch["mask"], ((0, 0), (0, p - 1)), constant_values=True)
    h = model.hidden(x, positions(mask), mask)
    losses = optax.softmax_cross_entropy_with_integer_labels(model.image_logits(h[:, -p:]), codes)
    return jnp.sum(losses), jnp.asarray(codes.size)


def loss(
    model: JanusModel,
    batch: dict[str, Batch],
    key: jax.Array,
    *,
    text_weight: float,
    code_noise: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of a mixed step.

    Args:
      model: the model.
      batch: for each kind in the step (`understanding`, `text`, `generation`) its arrays.
      key: source of the code noise.
      text_weight: weight of a text token beside an image token.
      code_noise: see `with_noise`.

    Returns:
      The loss, and the plain mean of each kind.
    """
    total, count, metrics = jnp.zeros(()), jnp.zeros(()), {}
    for kind, arrays in batch.items():
        if kind == "generation":
            (summed, n), weight = image_loss(model, arrays, code_noise, key), 1.0
        else:
            (summed, n), weight = text_loss(model, arrays), text_weight
        total, count = total + weight * summed, count + weight * n
        metrics[f"{kind}_loss"] = summed / n
    return total / count, metrics
