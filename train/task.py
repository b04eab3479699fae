"""A preset's objective made concrete: what is built, on which batches, with which loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from janus_jax.config import JanusConfig, get_config
from janus_jax.models.janus import JanusModel
from train.config import TrainConfig
from train.data.pipeline import Batches
from train.data.samples import EmojiData
from train.objectives import contrastive, janus, vq
from train.step import LossFn

ENCODE_CHUNK = 64


@dataclass(frozen=True)
class Task:
    """What a run does.

    Attributes:
      config: the architecture.
      build: makes the module, from its initialisation keys.
      loss: the loss of a batch.
      batches: makes the batches of a split ("train" or "heldout") once the model has its initial
        weights (generation needs the tokenizer's codes).
    """

    config: JanusConfig
    build: Callable[[nnx.Rngs], nnx.Module]
    loss: LossFn
    batches: Callable[[nnx.Module, str], dict[str, Batches]]


def make_task(config: TrainConfig) -> Task:
    """The task of a preset.

    Raises:
      InputError: an unknown architecture.
    """
    model = get_config(config.model)

    def data(split: str) -> EmojiData:
        return EmojiData(
            config,
            image_size=model.image_size,
            num_image_tokens=model.vision.num_patches,
            vocab_size=model.llm.vocab_size,
            split=split,
        )

    if config.objective == "vq":
        return Task(
            model,
            lambda rngs: vq.VQPart(model, rngs),
            lambda module, batch, key: vq.loss(module, batch["pictures"], config.vq_loss),
            lambda module, split: data(split).pictures_only(),
        )
    if config.objective == "contrastive":
        return Task(
            model,
            lambda rngs: contrastive.ContrastivePart(model, rngs),
            lambda module, batch, key: contrastive.loss(module, batch["pictures"]),
            lambda module, split: data(split).named_pictures(),
        )

    def batches(module: nnx.Module, split: str) -> dict[str, Batches]:
        source = data(split)
        needs_codes = config.mixture.generation > 0
        return source.batches(encode_pictures(module, source.pictures) if needs_codes else None)

    return Task(
        model,
        lambda rngs: JanusModel(model, rngs),
        lambda module, batch, key: janus.loss(
            module,
            batch,
            key,
            text_weight=config.text_loss_weight,
            code_noise=config.code_noise,
        ),
        batches,
    )


def encode_pictures(model: Any, pictures: np.ndarray) -> np.ndarray:
    """Image codes of a whole data set, made once: the tokenizer never changes in a stage.

    Args:
      model: a module with a `vq` child.
      pictures: uint8 [N, S, S, 3].

    Returns:
      int32 [N, P].
    """
    graphdef, params = nnx.split(model.vq)

    @jax.jit
    def encode(params: nnx.State, chunk: jax.Array) -> jax.Array:
        pixels = chunk.astype(jnp.float32) / 127.5 - 1.0
        return nnx.merge(graphdef, params).encode(pixels)

    codes = []
    for start in range(0, len(pictures), ENCODE_CHUNK):
        chunk = pictures[start : start + ENCODE_CHUNK]
        # The last chunk is filled up, so that one program serves all.
        filled = np.concatenate([chunk, np.zeros_like(pictures[: ENCODE_CHUNK - len(chunk)])])
        codes.append(np.asarray(encode(params, filled))[: len(chunk)])
    return np.concatenate(codes)
