"""Bytes of a training step on each device, from shapes alone."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from janus_jax.config import JanusConfig
from janus_jax.functional import abstract
from janus_jax.nn.layers import ShapesOnly
from train.config import Remat, TrainConfig
from train.plan.layout import Layout
from train.scanned import ScannedJanus, stack
from train.state import TrainState


@dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      parameters: float32 masters, those that train and those that do not.
      optimizer: moments of those that train.
      gradients: of those that train, and a second time where micro-steps are summed.
      cast: the parameters in the compute dtype.
      gathered: whole weights while they are used: two layers' (one computes, one comes in) and the
        larger head's, that with its gradient.
      activations: what the layers keep for the backward pass.
      logits: one chunk's, and their gradient.
      batch: the step's input.
    """

    parameters: int
    optimizer: int
    gradients: int
    cast: int
    gathered: int
    activations: int
    logits: int
    batch: int

    @property
    def total(self) -> int:
        """All of it: an estimate; `--compile` knows."""
        return sum(dataclasses.astuple(self))


def estimate(
    config: TrainConfig,
    model: JanusConfig,
    layout: Layout,
    state: TrainState,
    shardings: TrainState,
    batch: dict[str, Any],
    sizes: dict[str, int],
) -> Memory:
    """Adds up what a step holds at its fullest.

    Args:
      config: the preset.
      model: the architecture.
      layout: the packed batch.
      state: its state, as shapes.
      shardings: of the state.
      batch: the step's input, as shapes with shardings.
      sizes: of the mesh axes.
    """
    wide = jnp.dtype(config.compute_dtype).itemsize
    tensor = sizes["tensor"]
    trained = device_bytes(state.trainable, shardings.trainable)
    every = trained + device_bytes(state.frozen, shardings.frozen)
    llm = model.llm
    layer = 2 * (llm.num_heads + llm.num_kv_heads) * llm.head_dim + 3 * llm.mlp_dim
    head = llm.width * llm.vocab_size // tensor * wide
    head_trains = "llm" in config.trainable
    chunk = min(config.loss_chunk, layout.shape.text_targets)
    return Memory(
        parameters=every,
        optimizer=device_bytes(state.opt_state, shardings.opt_state),
        gradients=trained * wide // 4 + (trained if config.accumulate > 1 else 0),
        cast=every * wide // 4 if wide < 4 else 0,
        gathered=2 * llm.width * layer // tensor * wide + head * (2 if head_trains else 1),
        activations=activations(config, model, layout, sizes, config.remat),
        # In float32, and their gradient in the compute dtype.
        logits=chunk * llm.vocab_size // tensor * (4 + wide),
        batch=sum(_shard(x.shape, x.sharding) * x.dtype.itemsize for x in jax.tree.leaves(batch)),
    )


def device_bytes(tree: Any, shardings: Any) -> int:
    """Bytes of a tree of shapes on one device."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(_shard(x.shape, sharding) * x.dtype.itemsize for x, sharding in leaves)


def largest_replicated(state: TrainState, shardings: TrainState) -> int:
    """Bytes of the largest parameter that every device holds whole."""
    whole = [0]
    for tree, places in (
        (state.trainable, shardings.trainable),
        (state.frozen, shardings.frozen),
    ):
        for x, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True):
            if sharding.is_fully_replicated:
                whole.append(math.prod(x.shape) * x.dtype.itemsize)
    return max(whole)


def _shard(shape: tuple[int, ...], sharding: Any) -> int:
    return math.prod(sharding.shard_shape(shape))


def activations(
    config: TrainConfig, model: JanusConfig, layout: Layout, sizes: dict[str, int], remat: Remat
) -> int:
    """What the layers keep for the backward pass under a remat policy, read off the traced model.

    Sharded as they are, the activations of a device are those of a model with its share of the
    heads and of the MLP, over its share of each row. The vision tower keeps the input of each
    block, if it trains.
    """
    tensor, sequence = sizes["tensor"], sizes["sequence"]
    llm = dataclasses.replace(
        model.llm,
        num_heads=max(model.llm.num_heads // tensor, 1),
        num_kv_heads=max(model.llm.num_kv_heads // tensor, 1),
        mlp_dim=model.llm.mlp_dim // tensor,
    )
    part = dataclasses.replace(model, llm=llm)
    dtype = jnp.dtype(config.compute_dtype)
    module = ScannedJanus(part, ShapesOnly(), dtype=dtype, kernel="splash", remat=remat)
    graphdef = nnx.graphdef(module)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), stack(abstract(part)[1]))
    rows = (layout.shape.rows, layout.length // sequence)
    ids = jax.ShapeDtypeStruct(rows, jnp.int32)

    def kept(params: nnx.State, x: jax.Array, positions: jax.Array, segments: jax.Array) -> Any:
        def hidden(params: nnx.State, x: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params).hidden(x, positions, segments)

        return jax.vjp(hidden, params, x)[1]

    x = jax.ShapeDtypeStruct((*rows, llm.width), dtype)
    weights = {leaf.shape for leaf in jax.tree.leaves(params)}
    total = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(jax.eval_shape(kept, params, x, ids, ids))
        if leaf.shape not in weights
    )
    if "vision" in config.trainable:
        vision = model.vision
        features = layout.shape.pictures * vision.num_patches * vision.width
        total += vision.depth * features * dtype.itemsize
    return total
