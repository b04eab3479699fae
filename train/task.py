"""A preset's objective made concrete: what is trained, on which batches, with which loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from janus_jax.config import JanusConfig, get_config
from janus_jax.errors import InputError
from janus_jax.functional import abstract
from janus_jax.models.janus import JanusModel
from janus_jax.nn.layers import ShapesOnly
from janus_jax.nn.segments import kernel_of
from train.config import TrainConfig
from train.data.batches import PackedBatches
from train.data.emoji_source import EmojiSource
from train.data.packing import KINDS
from train.data.samples import EmojiData
from train.feed import Feed, PackedFeed, WholeFeed
from train.mesh import batch_shards
from train.objectives import contrastive, janus, vq
from train.scanned import ScannedJanus, stack, unstack
from train.step import LossFn, Sums

ENCODE_CHUNK = 64


@dataclass(frozen=True)
class Task:
    """What a run does.

    Attributes:
      config: the architecture.
      graphdef: static graph of the module that the loss runs.
      abstract: its parameters, as shapes with their logical axes.
      init: makes them from a key.
      loss: the loss of a micro-step.
      feed: the batches of a split ("train" or "heldout"), given the tokenizer's parameters where a
        run has one (generation needs its codes).
      from_layers: parameters as they are on disk (a layer at a time) to those of the module.
      to_layers: and back.
    """

    config: JanusConfig
    graphdef: Any
    abstract: nnx.State
    init: Callable[[jax.Array], nnx.State]
    loss: LossFn
    feed: Callable[[nnx.State | None, str], Feed]
    from_layers: Callable[[nnx.State], nnx.State]
    to_layers: Callable[[nnx.State], nnx.State]


def make_task(config: TrainConfig, mesh: Mesh) -> Task:
    """The task of a preset.

    Args:
      config: the preset.
      mesh: where it runs.

    Raises:
      InputError: an unknown architecture.
    """
    if config.objective == "janus":
        return _stage(config, mesh)
    model = get_config(config.model)
    if config.objective == "vq":
        data = functools.partial(_emoji, config, model)
        return _small(
            model,
            lambda rngs: vq.VQPart(model, rngs),
            lambda module, batch, key: _means(*vq.loss(module, batch, config.vq_loss)),
            lambda _, split: WholeFeed(data(split).pictures_only(), mesh),
        )
    return _small(
        model,
        lambda rngs: contrastive.ContrastivePart(model, rngs),
        lambda module, batch, key: _means(*contrastive.loss(module, batch)),
        lambda _, split: WholeFeed(_emoji(config, model, split).named_pictures(), mesh),
    )


def _small(
    model: JanusConfig,
    build: Callable[[nnx.Rngs], nnx.Module],
    loss: LossFn,
    feed: Callable[[nnx.State | None, str], Feed],
) -> Task:
    graphdef, params = nnx.split(build(ShapesOnly()))
    return Task(
        config=model,
        graphdef=graphdef,
        abstract=params,
        init=lambda key: nnx.split(build(nnx.Rngs(params=key)))[1],
        loss=loss,
        feed=feed,
        from_layers=lambda params: params,
        to_layers=lambda params: params,
    )


def _stage(config: TrainConfig, mesh: Mesh) -> Task:
    model, groups = get_config(config.model), batch_shards(mesh)
    counts = config.samples()
    module = ScannedJanus(
        model,
        ShapesOnly(),
        dtype=jnp.dtype(config.compute_dtype),
        kernel=kernel_of(mesh.devices.flat[0].platform),
        remat=config.remat,
    )

    def feed(tokenizer: nnx.State | None, split: str) -> Feed:
        data, codes = _emoji(config, model, split), None
        if counts["generation"]:
            codes = encode_pictures(model, tokenizer, data.pictures)
        batches = PackedBatches(
            EmojiSource(data, counts, codes),
            kinds=[kind for kind in KINDS if counts[kind]],
            length=config.length,
            image_size=model.image_size,
            image_tokens=model.num_image_tokens,
            groups=groups,
            accumulate=config.accumulate if split == "train" else 1,
            rows=config.rows if split == "train" else 0,
        )
        return PackedFeed(batches, mesh)

    return Task(
        config=model,
        graphdef=nnx.graphdef(module),
        abstract=stack(abstract(model)[1]),
        init=lambda key: stack(nnx.split(JanusModel(model, nnx.Rngs(params=key)))[1]),
        loss=functools.partial(
            janus.loss,
            groups=groups,
            drawings=counts["generation"],
            text_weight=config.text_loss_weight,
            code_noise=config.code_noise,
            chunk=config.loss_chunk,
        ),
        feed=feed,
        from_layers=stack,
        to_layers=unstack,
    )


def _emoji(config: TrainConfig, model: JanusConfig, split: str) -> EmojiData:
    return EmojiData(
        config,
        image_size=model.image_size,
        num_image_tokens=model.vision.num_patches,
        vocab_size=model.llm.vocab_size,
        split=split,
    )


def _means(loss: jax.Array, metrics: dict[str, jax.Array]) -> Sums:
    return {name: (value, jnp.ones(())) for name, value in {"loss": loss, **metrics}.items()}


def encode_pictures(
    config: JanusConfig, tokenizer: nnx.State | None, pictures: np.ndarray
) -> np.ndarray:
    """Image codes of a whole data set, made once: the tokenizer never changes in a stage.

    Args:
      config: the architecture.
      tokenizer: parameters of the model's child `vq`.
      pictures: uint8 [N, S, S, 3].

    Returns:
      int32 [N, P].

    Raises:
      InputError: no tokenizer.
    """
    if tokenizer is None:
        raise InputError(
            "generation samples need image codes, and the run has no tokenizer to make them",
            fix="add vq=RUN or vq=MODEL to --init",
        )
    graphdef = nnx.graphdef(JanusModel(config, ShapesOnly()).vq)

    @jax.jit
    def encode(params: nnx.State, chunk: jax.Array) -> jax.Array:
        pixels = chunk.astype(jnp.float32) / 127.5 - 1.0
        return nnx.merge(graphdef, params).encode(pixels)

    codes = []
    for start in range(0, len(pictures), ENCODE_CHUNK):
        chunk = pictures[start : start + ENCODE_CHUNK]
        # The last chunk is filled up, so that one program serves all.
        filled = np.concatenate([chunk, np.zeros_like(pictures[: ENCODE_CHUNK - len(chunk)])])
        codes.append(np.asarray(encode(tokenizer, filled))[: len(chunk)])
    return np.concatenate(codes)
