"""The loss of packed rows spread over many devices.

Dims: G groups, R rows of all groups, T row length, N pictures, P image tokens of a picture, C drawn
pictures, A text targets, D width, V words.

A group is a set of rows that is packed by itself: every index of its batch speaks of its own rows,
pictures and codes. Batches of groups are concatenated along their first axis. Where G is a multiple
of the devices that rows are spread over, no device asks another for a row, a picture or a state;
and the loss is the same for every mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from janus_jax.models.janus import JanusModel
from janus_jax.sharding import constrain
from train.objectives.janus import with_noise

KINDS = ("understanding", "text")


def take(values: jax.Array, index: jax.Array, groups: int) -> jax.Array:
    """Rows [M, D] at `index` [K], which counts within each group -> [K, D]; below 0 counts as 0."""
    values = constrain(values.reshape(groups, -1, values.shape[-1]), "batch", None, None)
    index = constrain(jnp.maximum(index, 0).reshape(groups, -1), "batch", None)
    taken = jax.vmap(lambda v, i: jnp.take(v, i, axis=0, mode="clip"))(values, index)
    return constrain(taken, "batch", None, None).reshape(-1, values.shape[-1])


def chunked(
    logits: Callable[[jax.Array], jax.Array],
    states: jax.Array,
    targets: jax.Array,
    *,
    groups: int,
    chunk: int,
) -> jax.Array:
    """Negative log-likelihoods [K]; only `chunk` positions of each group have logits at a time.

    Args:
      logits: the head, [..., D] -> [..., V] float32.
      states: [K, D].
      targets: int32 [K].
      groups: G.
      chunk: positions of a group.
    """
    each = states.shape[0] // groups
    pad = -each % chunk
    states = jnp.pad(states.reshape(groups, each, -1), ((0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets.reshape(groups, each), ((0, 0), (0, pad)))
    n = (each + pad) // chunk

    @jax.checkpoint
    def one(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        h = constrain(part[0], "batch", None, None)
        return optax.softmax_cross_entropy_with_integer_labels(logits(h), part[1])

    parts = (
        states.reshape(groups, n, chunk, -1).swapaxes(0, 1),
        targets.reshape(groups, n, chunk).swapaxes(0, 1),
    )
    losses = jax.lax.map(one, parts)
    return losses.swapaxes(0, 1).reshape(groups, -1)[:, :each].reshape(-1)


def inputs(
    model: JanusModel, batch: dict[str, Any], groups: int, code_noise: float, key: jax.Array
) -> jax.Array:
    """Input embeddings [R, T, D]: words, features of pictures and codes, each at its slots."""
    x = model.embed(batch["tokens"])
    shape = x.shape

    def place(x: jax.Array, rows: jax.Array, index: jax.Array) -> jax.Array:
        rows = rows.reshape(-1, shape[-1]).astype(x.dtype)
        there = take(rows, index.reshape(-1), groups).reshape(shape)
        return jnp.where((index >= 0)[..., None], there, x)

    if batch["pixels"].shape[0]:
        pixels = batch["pixels"].astype(jnp.float32) / 127.5 - 1.0
        x = place(x, model.encode_image(pixels), batch["image_index"])
    if batch["codes"].shape[0]:
        codes = batch["codes"]
        if code_noise:
            codes = with_noise(codes, code_noise, model.gen_embed.embedding.shape[0], key)
        x = place(x, model.embed_image_tokens(codes), batch["code_index"])
    return constrain(x, "batch", "length", None)


def loss(
    model: JanusModel,
    batch: dict[str, Any],
    key: jax.Array,
    *,
    groups: int,
    text_weight: float = 1.0,
    code_noise: float = 0.0,
    chunk: int = 512,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of a packed step over all its target tokens.

    Args:
      model: the model.
      batch: see `train.data.packing.pack`, groups concatenated.
      key: source of the code noise.
      groups: G.
      text_weight: weight of a text token beside an image token.
      code_noise: see `train.objectives.janus.with_noise`.
      chunk: see `chunked`.

    Returns:
      The loss; and for each kind its plain mean `{kind}_loss` and its targets `{kind}_tokens`.
    """
    x = inputs(model, batch, groups, code_noise, key)
    states = model.hidden(x, batch["positions"], batch["segment_ids"])
    states = states.reshape(-1, states.shape[-1])
    total, count, metrics = jnp.zeros(()), jnp.zeros(()), {}
    tasks = []
    if batch["text_weights"]:
        here = take(states, batch["text_positions"], groups)
        nll = chunked(model.text_logits, here, batch["text_targets"], groups=groups, chunk=chunk)
        tasks += [(kind, nll, w, text_weight) for kind, w in batch["text_weights"].items()]
    if batch["codes"].shape[0]:
        here = take(states, batch["image_positions"], groups)
        nll = chunked(model.image_logits, here, batch["image_targets"], groups=groups, chunk=chunk)
        tasks.append(("generation", nll, batch["image_weights"], 1.0))
    for kind, nll, weights, weight in tasks:
        summed, n = jnp.sum(nll * weights), jnp.sum(weights)
        total, count = total + weight * summed, count + weight * n
        metrics[f"{kind}_loss"] = summed / jnp.maximum(n, 1)
        metrics[f"{kind}_tokens"] = n
    return total / jnp.maximum(count, 1), metrics
