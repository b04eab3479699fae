"""The stages' loss without packing: a sample a row, padded on the left. What packing is held to.

Dims: B batch, T tokens, A answer tokens, P image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from janus_jax.models.janus import JanusModel
from janus_jax.processing.prompt import image_index, left_pad
from train.data.packing import Conversation, Generation

Batch = dict[str, Any]
Sums = tuple[jax.Array, jax.Array]


def collate_talks(samples: Sequence[Conversation], image_tokens: int) -> Batch:
    """Arrays of `text_loss`."""
    tokens, mask, _ = left_pad([s.tokens for s in samples], 0)
    length = tokens.shape[1]
    answer = np.zeros(tokens.shape, bool)
    for row, sample in zip(answer, samples, strict=True):
        row[length - sample.length :] = sample.answer
    batch: Batch = {"tokens": tokens, "mask": mask, "answer": answer}
    pictures = [s.pictures for s in samples if s.pictures is not None]
    if pictures:
        spans = [tuple((start, image_tokens) for start in s.starts) for s in samples]
        offsets = [length - s.length for s in samples]
        batch["pixels"] = np.concatenate(pictures)
        batch["image_index"] = image_index(spans, length, image_tokens, offsets)
    return batch


def collate_drawings(samples: Sequence[Generation]) -> Batch:
    """Arrays of `image_loss`."""
    tokens, mask, _ = left_pad([s.prompt for s in samples], 0)
    return {"tokens": tokens, "mask": mask, "codes": np.stack([s.codes for s in samples])}


def positions(mask: jax.Array) -> jax.Array:
    """Positions of left-padded rows: mask [B, T] -> int32 [B, T], 0 in the padding."""
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


def text_loss(model: JanusModel, batch: Batch) -> Sums:
    """Summed cross-entropy on the answers of understanding or text samples, and their tokens."""
    tokens, mask, answer = batch["tokens"], batch["mask"], batch["answer"]
    features = None
    if "pixels" in batch:
        features = model.encode_image(batch["pixels"].astype(jnp.float32) / 127.5 - 1.0)
    x = model.embed(tokens, features, batch.get("image_index"))
    h = model.hidden(x, positions(mask), mask)
    logits = model.text_logits(h[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return jnp.sum(losses * answer[:, 1:]), jnp.sum(answer[:, 1:])


def image_loss(model: JanusModel, batch: Batch) -> Sums:
    """Summed cross-entropy on the codes of generation samples, and their number."""
    codes = batch["codes"]
    p = codes.shape[1]
    drawn = model.embed_image_tokens(codes[:, :-1])
    x = jnp.concatenate([model.embed(batch["tokens"]), drawn], axis=1)
    mask = jnp.pad(batch["mask"], ((0, 0), (0, p - 1)), constant_values=True)
    h = model.hidden(x, positions(mask), mask)
    losses = optax.softmax_cross_entropy_with_integer_labels(model.image_logits(h[:, -p:]), codes)
    return jnp.sum(losses), jnp.asarray(codes.size)


def loss(model: JanusModel, batch: dict[str, Batch], *, text_weight: float) -> dict[str, Sums]:
    """Sums as `train.objectives.janus.loss` gives them."""
    total, count, sums = jnp.zeros(()), jnp.zeros(()), {}
    for kind, arrays in batch.items():
        if kind == "generation":
            (summed, n), weight = image_loss(model, arrays), 1.0
        else:
            (summed, n), weight = text_loss(model, arrays), text_weight
        total, count = total + weight * summed, count + weight * n
        sums[f"{kind}_loss"] = summed, n
    return {"loss": (total, count), **sums}
