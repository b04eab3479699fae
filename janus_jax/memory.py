"""How much memory a model, its pictures and its answers need, before any of it is taken.

The sums are those of the compiled programs (`tests/test_memory.py` compares them with what XLA
reports): weights; keys and values of every row; beside them, while several prompts are read, half
of theirs once more, and at any time room for one layer's once more, of which reading prompts takes
up to all and drawing a token little but its logits; and after them, while a picture is decoded,
three feature maps of the decoder at full resolution. Answers take keys and values too, and while
prompts and their pictures are read, the widest layer's arrays of all of them.

Dims: R rows (two a picture that is drawn), T prompt tokens, S cache slots, L layers, K key heads,
H head width, P tokens of a picture that is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from janus_jax.config import JanusConfig
from janus_jax.errors import InputError
from janus_jax.host_memory import host_memory
from janus_jax.nn.cache import whole_slots

_DECODER_MAPS = 3
# What the runtime, fragmentation and small buffers take of a device.
HEADROOM = 0.95


@dataclass(frozen=True)
class Need:
    """Bytes on one device.

    Attributes:
      weights: parameters.
      cache: keys and values of all rows.
      prefill: what prompts take beside them: to draw, before several are copied to their pictures;
        to answer, with their own pictures, in the widest layer.
      step: room beside them for reading prompts and drawing a token.
      decode: what decoding a picture takes, once the caches are gone.
    """

    weights: int
    cache: int
    prefill: int
    step: int
    decode: int

    @property
    def total(self) -> int:
        """At least the largest sum at any time."""
        return self.weights + max(self.cache + self.prefill + self.step, self.decode)


def param_bytes(params: Any) -> int:
    """Bytes of (possibly abstract) parameters on the device that holds most of them."""

    def one(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(tuple(leaf.shape))
        return math.prod(shape) * np.dtype(leaf.dtype).itemsize

    return sum(map(one, jax.tree.leaves(params)))


def shard_bytes(params: Any, shardings: Any = None) -> int:
    """Bytes of abstract parameters on one device, whole or spread by a tree of shardings."""
    if shardings is None:
        return param_bytes(params)
    places = jax.tree.leaves(shardings)
    return sum(
        math.prod(place.shard_shape(tuple(leaf.shape))) * np.dtype(leaf.dtype).itemsize
        for leaf, place in zip(jax.tree.leaves(params), places, strict=True)
    )


def drawing(
    config: JanusConfig,
    weights: int,
    pictures: int,
    prompt_length: int,
    *,
    itemsize: int,
    prompts: int = 1,
    mesh: Mapping[str, int] | None = None,
) -> Need:
    """What drawing takes.

    Args:
      config: architecture.
      weights: bytes of parameters on a device.
      pictures: how many at once.
      prompt_length: padded tokens of their prompts.
      itemsize: bytes of a number in the caches: 4, or 2 in bfloat16.
      prompts: how many different ones.
      mesh: size of each axis that the model is spread over.
    """
    llm = config.llm
    slots = whole_slots(prompt_length + config.num_image_tokens - 1)
    rows, heads = _shares(2 * pictures, llm.num_kv_heads, mesh)
    row_layer = 2 * slots * heads * llm.head_dim * itemsize
    # One prompt is copied as it is made; of several, half is there twice.
    prefill = llm.depth * 2 * prompts * row_layer // 2 if prompts > 1 else 0
    logits = 4 * 2 * pictures * config.vq.codebook_size * 4
    decode = _DECODER_MAPS * config.image_size**2 * config.vq.base_channels * 4
    return Need(weights, llm.depth * rows * row_layer, prefill, rows * row_layer + logits, decode)


def _shares(rows: int, heads: int, mesh: Mapping[str, int] | None) -> tuple[int, int]:
    """Rows and heads on one device. As `constrain` has it: what does not divide is not split."""
    sizes = mesh or {}
    rows_over = sizes.get("data", 1) * sizes.get("fsdp", 1)
    heads_over = sizes.get("tensor", 1)
    return (
        rows // rows_over if rows % rows_over == 0 else rows,
        heads // heads_over if heads % heads_over == 0 else heads,
    )


def answering(
    config: JanusConfig,
    weights: int,
    rows: int,
    pictures: int,
    prompt_length: int,
    slots: int,
    *,
    itemsize: int,
    mesh: Mapping[str, int] | None = None,
) -> Need:
    """What answering questions takes.

    Args:
      config: architecture.
      weights: bytes of parameters on a device.
      rows: conversations at once.
      pictures: those of all of them.
      prompt_length: padded tokens of their prompts.
      slots: those of their caches.
      itemsize: bytes of a number in the caches.
      mesh: size of each axis that the model is spread over.
    """
    llm, vision = config.llm, config.vision
    rows_here, kv_heads = _shares(rows, llm.num_kv_heads, mesh)
    cache = llm.depth * 2 * rows_here * slots * kv_heads * llm.head_dim * itemsize
    _, heads = _shares(rows, llm.num_heads, mesh)
    pictures, vision_heads = _shares(pictures, vision.num_heads, mesh)
    text = _layer(rows_here, prompt_length, heads, llm.width, llm.mlp_dim, itemsize)
    seen = _layer(
        pictures, vision.num_patches, vision_heads, vision.width, vision.mlp_dim, itemsize
    )
    pixels = pictures * vision.image_size**2 * 3 * 4
    step = rows_here * (5 * llm.vocab_size + 2 * heads * slots) * 4
    return Need(weights, cache, pixels + max(text, seen), step, 0)


def _layer(rows: int, tokens: int, heads: int, width: int, mlp_dim: int, itemsize: int) -> int:
    """What a layer takes beside its weights: scores and their softmax, or the MLP's two halves."""
    attention = 2 * heads * tokens * 4 + 3 * width * itemsize
    return rows * tokens * max(attention, (2 * mlp_dim + 5 * width) * itemsize)


def cache_itemsize(params: Any) -> int:
    """Bytes of a number in the caches: that of the norms, which int8 leaves wide."""
    return params["llm"]["norm"]["scale"].get_value().dtype.itemsize


def largest_batch(
    config: JanusConfig,
    weights: int,
    prompt_length: int,
    free: int,
    *,
    itemsize: int,
    most: int,
    prompts: int = 1,
    mesh: Mapping[str, int] | None = None,
) -> int:
    """The most pictures, up to `most`, that fit into `free` bytes; 0 where not one does."""
    for pictures in range(most, 0, -1):
        need = drawing(
            config,
            weights,
            pictures,
            prompt_length,
            itemsize=itemsize,
            prompts=min(prompts, pictures),
            mesh=mesh,
        )
        if need.total <= free:
            return pictures
    return 0


def device_bytes() -> int | None:
    """Bytes that a device could give to a model, those it has given included; None if unknown.

    `JANUS_JAX_MEMORY_GB` says otherwise. On a CPU it is what the system has free now.
    """
    if chosen := os.environ.get("JANUS_JAX_MEMORY_GB"):
        try:
            return int(float(chosen) * 1e9)
        except ValueError as error:
            raise InputError(f"JANUS_JAX_MEMORY_GB is {chosen!r}", "gigabytes") from error
    stats = jax.local_devices()[0].memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return int(limit * HEADROOM)
    host = host_memory()
    return None if host is None else int(host.free * HEADROOM)


def free_bytes(weights: int) -> int | None:
    """Bytes for a model and all that it does, its weights included; None if unknown.

    Args:
      weights: bytes of its parameters on a device, which are there already.
    """
    free = device_bytes()
    if free is None or jax.default_backend() != "cpu" or "JANUS_JAX_MEMORY_GB" in os.environ:
        return free
    return free + weights  # what a host has free now comes on top of them


def check_weights(name: str, weights: int) -> None:
    """Refuses a model that does not fit, before it is read.

    Args:
      name: what the message calls it.
      weights: bytes of its parameters on a device.

    Raises:
      InputError: with both numbers.
    """
    free = device_bytes()
    if free is not None and weights > free:
        raise InputError(
            f"model {name!r} takes {gb(weights)} on a device, {gb(free)} are free",
            fix="use a narrower dtype, spread it over a mesh, or take a smaller model",
        )


def pictures_at_once(
    config: JanusConfig,
    weights: int,
    prompt_length: int,
    *,
    itemsize: int,
    most: int,
    asked: int | None,
    prompts: int = 1,
    mesh: Mapping[str, int] | None = None,
) -> int:
    """How many pictures to draw at once.

    Args:
      config: architecture.
      weights: bytes of parameters on a device, which are there already.
      prompt_length: padded tokens of the longest prompt.
      itemsize: bytes of a number in the caches.
      most: the default.
      asked: what the user asked for; None takes the default, or what fits.
      prompts: how many different ones.
      mesh: size of each axis that the model is spread over.

    Raises:
      InputError: `asked`, or even one picture, does not fit; says what would.
    """
    free = free_bytes(weights)
    wanted = asked or most
    if free is None:
        return wanted
    fits = largest_batch(
        config,
        weights,
        prompt_length,
        free,
        itemsize=itemsize,
        most=wanted,
        prompts=prompts,
        mesh=mesh,
    )
    if fits == 0 or (asked is not None and fits < asked):
        pictures = asked or 1
        need = drawing(
            config,
            weights,
            pictures,
            prompt_length,
            itemsize=itemsize,
            prompts=min(prompts, pictures),
            mesh=mesh,
        )
        noun = "picture" if pictures == 1 else "pictures"
        raise InputError(
            f"drawing {pictures} {noun} at once takes {gb(need.total)} on a device "
            f"({gb(need.weights)} of weights), {gb(free)} are free",
            f"at most {fits} at once" if fits else "",
            "use a narrower dtype, or spread the model over a mesh" if not fits else "",
        )
    return fits


def gb(nbytes: float) -> str:
    """`1.23 GB`."""
    return f"{nbytes / 1e9:.2f} GB"
