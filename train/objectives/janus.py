"""The loss of the three stages on packed rows: cross-entropy on answers and on image tokens.

Dims: G groups, R rows of all groups, T row length, N pictures, P image tokens of a picture,
C drawn pictures, A text targets, D width, V words, K image codes.

Rows come in groups (`train.data.batches`): all indices of a group's arrays speak of its own rows,
pictures and codes, so that over a mesh no device asks another for a row of anything. Each head runs
at its own targets alone, gathered out of the rows, and for a chunk of them at a time.

The mean is over all loss tokens of the step, whatever their kind (report, section 2.2: no weights
between tasks are given).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.models.janus import JanusModel
from janus_jax.sharding import constrain
from train.objectives.chunked import cross_entropy

Batch = dict[str, Any]
Sums = dict[str, tuple[jax.Array, jax.Array]]


def take(values: jax.Array, index: jax.Array, groups: int) -> jax.Array:
    """Rows [M, D] at `index` [I], which counts within each group, below 0 as 0: [G, I / G, D]."""
    values = constrain(values.reshape(groups, -1, values.shape[-1]), "batch", None, None)
    index = constrain(jnp.maximum(index, 0).reshape(groups, -1), "batch", None)
    taken = jax.vmap(lambda v, i: jnp.take(v, i, axis=0, mode="clip"))(values, index)
    return constrain(taken, "batch", None, None)


def with_noise(
    codes: jax.Array, ranks: jax.Array, drawings: int, noise: float, num_codes: int, key: jax.Array
) -> jax.Array:
    """Replaces some input codes by random ones, so that what follows is told by the prompt as well.

    What is replaced, and by what, is a function of the key and a picture's rank in the step,
    wherever it is packed.

    Args:
      codes: int32 [C, P].
      ranks: int32 [C], of each picture among those of the step.
      drawings: pictures of the step.
      noise: each picture draws the share to replace evenly from 0 to this.
      num_codes: K.
      key: source of the noise.

    Returns:
      int32 [C, P]; the last code, which is no input, stays.
    """
    share_key, place_key, code_key = jax.random.split(key, 3)
    shape = (drawings, codes.shape[1] - 1)
    share = jax.random.uniform(share_key, (drawings, 1), maxval=noise)
    random = jax.random.randint(code_key, shape, 0, num_codes, codes.dtype)
    replaced = jax.random.uniform(place_key, shape) < share
    inputs = jnp.where(replaced[ranks], random[ranks], codes[:, :-1])
    return jnp.concatenate([inputs, codes[:, -1:]], axis=1)


def inputs(
    model: JanusModel, batch: Batch, key: jax.Array, *, groups: int, drawings: int, noise: float
) -> jax.Array:
    """Input embeddings [R, T, D]: words, features of pictures and codes, each at its slots.

    Arguments as those of `loss`.
    """
    x = model.embed(batch["tokens"])

    def place(x: jax.Array, rows: jax.Array, index: jax.Array) -> jax.Array:
        there = take(rows.reshape(-1, x.shape[-1]).astype(x.dtype), index.reshape(-1), groups)
        return jnp.where((index >= 0)[..., None], there.reshape(x.shape), x)

    if batch["pixels"].shape[0]:
        pixels = batch["pixels"].astype(jnp.float32) / 127.5 - 1.0
        x = place(x, model.encode_image(pixels), batch["image_index"])
    codes = batch["codes"]
    if codes.shape[0]:
        if noise:
            num_codes = model.gen_embed.embedding.shape[-2]
            codes = with_noise(codes, batch["drawing_ranks"], drawings, noise, num_codes, key)
        x = place(x, model.embed_image_tokens(codes), batch["code_index"])
    return constrain(x, "batch", "length", None)


def loss(
    model: JanusModel,
    batch: Batch,
    key: jax.Array,
    *,
    groups: int = 1,
    drawings: int = 0,
    text_weight: float = 1.0,
    code_noise: float = 0.0,
    chunk: int = 1024,
) -> Sums:
    """Sums over the loss tokens of packed rows.

    Args:
      model: the model.
      batch: arrays of `train.data.packing.pack`, groups one after another.
      key: source of the code noise.
      groups: G.
      drawings: pictures to draw in the whole step; only needed with noise.
      text_weight: weight of a text token beside an image token.
      code_noise: see `with_noise`; it goes into the inputs, never into the targets.
      chunk: text targets of each group whose logits exist at the same time, see `image_chunk`.

    Returns:
      For each kind `{kind}_loss` its summed loss and its number of tokens; `loss`: the weighted sum
      and the weights' sum, whose quotient is the loss of the step.
    """
    x = inputs(model, batch, key, groups=groups, drawings=drawings, noise=code_noise)
    states = model.hidden(x, batch["positions"], batch["segment_ids"])
    states = states.reshape(-1, states.shape[-1])
    sums: Sums = {}
    total, count = jnp.zeros(()), jnp.zeros(())
    if batch["text_weights"]:
        chosen = take(states, batch["text_positions"], groups)
        losses = cross_entropy(model.text_logits, chosen, batch["text_targets"], chunk=chunk)
        for kind, weights in batch["text_weights"].items():
            summed, n = jnp.sum(losses * weights), jnp.sum(weights)
            total, count = total + text_weight * summed, count + text_weight * n
            sums[f"{kind}_loss"] = summed, n
    if batch["codes"].shape[0]:
        chosen = take(states, batch["image_positions"], groups)
        losses = cross_entropy(
            model.image_logits, chosen, batch["image_targets"], chunk=image_chunk(model, chunk)
        )
        summed, n = jnp.sum(losses * batch["image_weights"]), jnp.sum(batch["image_weights"])
        total, count = total + summed, count + n
        sums["generation_loss"] = summed, n
    return {"loss": (total, count), **sums}


def image_chunk(model: JanusModel, chunk: int) -> int:
    """Image targets that take no more memory than `chunk` text targets.

    Two thirds of it is logits, the rest what the head's hidden layer keeps (docs/LOG.md).
    """
    words, codes = (head.kernel.shape[-1] for head in (model.llm.lm_head, model.image_head.out))
    return max(1, 2 * chunk * words // (3 * codes))
