"""Pretraining SigLIP on pictures and names, with a text tower that is thrown away.

Dims: B batch, T text tokens, P patches, W width.

The loss is the pairwise sigmoid of SigLIP (arXiv 2303.15343, section 3.2): every picture of the
batch with every name is one binary question.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from janus_jax.config import JanusConfig
from janus_jax.models.siglip import Block, Siglip
from janus_jax.models.vq import l2_normalize
from janus_jax.nn.layers import Embedding, LayerNorm, Linear, param

TEXT_DEPTH = 2


class TextTower(nnx.Module):
    """What only the contrastive loss needs: the text encoder, both projections, scale and bias."""

    def __init__(self, config: JanusConfig, rngs: nnx.Rngs):
        vision, f32 = config.vision, jnp.float32
        kwargs: dict[str, Any] = dict(dtype=f32, param_dtype=f32)
        self.embed = Embedding(
            rngs,
            config.llm.vocab_size,
            vision.width,
            ("vocab", "embed"),
            init=initializers.normal(0.02),
            **kwargs,
        )
        self.blocks = nnx.List([Block(rngs, vision, **kwargs) for _ in range(TEXT_DEPTH)])
        self.norm = LayerNorm(rngs, vision.width, eps=vision.layer_norm_eps, param_dtype=f32)
        self.text_proj = Linear(rngs, vision.width, vision.width, (None, None), bias=True, **kwargs)
        self.image_proj = Linear(
            rngs, vision.width, vision.width, (None, None), bias=True, **kwargs
        )
        # The initial values of the SigLIP paper: t = 10, b = -10.
        self.log_scale = param(rngs, (), (), initializers.constant(jnp.log(10.0)), f32)
        self.bias = param(rngs, (), (), initializers.constant(-10.0), f32)

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Unit vectors of names: ids [B, T], mask [B, T] -> [B, W]."""
        # Names are short and their word order carries little, so no positions are needed.
        x = self.embed(tokens)
        visible = jnp.broadcast_to(mask[:, None, :], (*mask.shape, mask.shape[1]))
        for block in self.blocks:
            x = block(x, visible)
        weights = mask[..., None].astype(jnp.float32)
        pooled = (self.norm(x) * weights).sum(1) / weights.sum(1)
        return l2_normalize(self.text_proj(pooled))

    def image(self, features: jax.Array) -> jax.Array:
        """Unit vectors of pictures: SigLIP features [B, P, W] -> [B, W]."""
        return l2_normalize(self.image_proj(features.mean(1)))


class ContrastivePart(nnx.Module):
    """SigLIP under the name it has in `JanusModel`, and the tower beside it."""

    def __init__(self, config: JanusConfig, rngs: nnx.Rngs):
        self.vision = Siglip(rngs, config.vision, dtype=jnp.float32, param_dtype=jnp.float32)
        self.text_tower = TextTower(config, rngs)


def loss(model: ContrastivePart, batch: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sigmoid loss.

    Args:
      model: the module of `ContrastivePart`.
      batch: `pixels` uint8 [B, S, S, 3]; `tokens` int32 [B, T] and `mask` bool [B, T] of the names;
        `picture` int32 [B], equal for pictures that look the same.

    Returns:
      The loss, and how often the nearest name in the batch is a right one.
    """
    pixels = batch["pixels"].astype(jnp.float32) / 127.5 - 1.0
    tower = model.text_tower
    images = tower.image(model.vision(pixels))
    texts = tower(batch["tokens"], batch["mask"])
    logits = images @ texts.T * jnp.exp(tower.log_scale[...]) + tower.bias[...]
    same = batch["picture"][:, None] == batch["picture"][None, :]
    signs = jnp.where(same, 1.0, -1.0)
    value = -jnp.sum(jax.nn.log_sigmoid(signs * logits)) / logits.shape[0]
    nearest = jnp.take_along_axis(same, jnp.argmax(logits, 1)[:, None], 1)
    return value, {"retrieval": nearest.mean()}
