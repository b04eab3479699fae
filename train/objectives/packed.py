"""The loss of the three stages on packed rows; equal to `train.objectives.janus` sample by sample.

Dims: R rows, T row length, N pictures, G drawn pictures, P image tokens of a picture, A text
targets, D width.

Each head runs at its own targets alone, gathered out of the rows: A text positions and G * P image
positions instead of R * T each.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.models.janus import JanusModel
from janus_jax.sharding import constrain
from train.objectives.chunked import cross_entropy
from train.objectives.janus import with_noise

PackedBatch = dict[str, Any]


def inputs(model: JanusModel, batch: PackedBatch, code_noise: float, key: jax.Array) -> jax.Array:
    """Input embeddings [R, T, D]: words, features of pictures and codes, each at its slots.

    Args:
      model: the model.
      batch: see `train.data.packing.pack`.
      code_noise: see `train.objectives.janus.with_noise`.
      key: source of the noise.
    """
    features = None
    if batch["pixels"].shape[0]:
        features = model.encode_image(batch["pixels"].astype(jnp.float32) / 127.5 - 1.0)
    x = model.embed(batch["tokens"], features, batch["image_index"])
    codes, index = batch["codes"], batch["code_index"]
    if codes.shape[0]:
        if code_noise:
            codes = with_noise(codes, code_noise, model.gen_embed.embedding.shape[0], key)
        embedded = model.embed_image_tokens(codes).reshape(-1, x.shape[-1]).astype(x.dtype)
        drawn = jnp.take(embedded, jnp.maximum(index, 0), axis=0, mode="clip")
        x = jnp.where((index >= 0)[..., None], drawn, x)
    return constrain(x, "batch", "length", None)


def loss(
    model: JanusModel,
    batch: PackedBatch,
    key: jax.Array,
    *,
    text_weight: float,
    code_noise: float,
    chunk: int = 1024,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of a packed step over all its target tokens.

    Args:
      model: the model.
      batch: see `train.data.packing.pack`.
      key: source of the code noise.
      text_weight: weight of a text token beside an image token.
      code_noise: see `train.objectives.janus.with_noise`.
      chunk: positions of a head whose logits exist at the same time.

    Returns:
      The loss; and for each kind its plain mean `{kind}_loss` and its targets `{kind}_tokens`.
    """
    x = inputs(model, batch, code_noise, key)
    states = model.hidden(x, batch["positions"], batch["segment_ids"])
    states = states.reshape(-1, states.shape[-1])
    total, count, metrics = jnp.zeros(()), jnp.zeros(()), {}

    def add(kind: str, losses: jax.Array, weights: jax.Array, weight: float) -> None:
        nonlocal total, count
        summed, n = jnp.sum(losses * weights), jnp.sum(weights)
        total, count = total + weight * summed, count + weight * n
        metrics[f"{kind}_loss"], metrics[f"{kind}_tokens"] = summed / n, n

    if batch["text_weights"]:
        chosen = states[batch["text_positions"]]
        losses = cross_entropy(model.text_logits, chosen, batch["text_targets"], chunk=chunk)
        for kind, weights in batch["text_weights"].items():
            add(kind, losses, weights, text_weight)
    if batch["codes"].shape[0]:
        chosen = states[batch["image_positions"]]
        losses = cross_entropy(model.image_logits, chosen, batch["image_targets"], chunk=chunk)
        add("generation", losses, batch["image_weights"], 1.0)
    return total / count, metrics
