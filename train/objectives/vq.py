"""Training the VQ tokenizer on pictures alone.

Dims: B batch, S picture side, Y X grid sides, C code width, K codes.

The losses are LlamaGen's (arXiv 2406.06525, section 3.1): reconstruction, codebook and commitment,
and the entropy term its code carries (weight 0 when published). The perceptual and adversarial
terms need pretrained or extra networks; drawings are flat enough for pixel and edge errors.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from janus_jax.config import JanusConfig
from janus_jax.models.vq import VQTokenizer
from train.config import VQLossConfig


class VQPart(nnx.Module):
    """The tokenizer under the name it has in `JanusModel`."""

    def __init__(self, config: JanusConfig, rngs: nnx.Rngs):
        self.vq = VQTokenizer(rngs, config.vq, dtype=jnp.float32, param_dtype=jnp.float32)


def entropy_loss(similarity: jax.Array, temperature: float) -> jax.Array:
    """Mean entropy of the assignments less the entropy of their mean.

    Args:
      similarity: [M, K] inner products of unit latents with unit codes.
      temperature: divides the squared distances.

    Returns:
      Scalar, smallest when every latent is certain and all codes are used alike.
    """
    # Squared distance between unit vectors is 2 - 2 * similarity.
    log_p = jax.nn.log_softmax(2.0 * similarity / temperature, axis=-1)
    p = jnp.exp(log_p)
    sample_entropy = -jnp.mean(jnp.sum(p * log_p, axis=-1))
    mean = p.mean(0)
    return sample_entropy + jnp.sum(mean * jnp.log(mean + 1e-8))


def reconstruct(vq: VQTokenizer, pixels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Encodes, quantises with a straight-through gradient and decodes.

    Args:
      vq: the tokenizer.
      pixels: [B, S, S, 3] in [-1, 1].

    Returns:
      pictures [B, S, S, 3], unit latents [B, Y, X, C], and ids [B, P].
    """
    latents = vq.latents(pixels)
    ids = jax.lax.stop_gradient(vq.quantize(latents))
    codes = jnp.take(vq.codes(), ids, axis=0).reshape(latents.shape)
    straight_through = latents + jax.lax.stop_gradient(codes - latents)
    return vq.decode_latents(straight_through), latents, ids


def loss(
    model: VQPart, batch: dict[str, Any], config: VQLossConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The tokenizer's loss.

    Args:
      model: the module of `VQPart`.
      batch: `pixels`, uint8 [B, S, S, 3].
      config: weights of the terms.

    Returns:
      The loss and its terms, PSNR in dB, and the share of the codebook that the batch uses.
    """
    vq = model.vq
    pixels = batch["pixels"].astype(jnp.float32) / 127.5 - 1.0
    drawn, latents, ids = reconstruct(vq, pixels)
    codes = jnp.take(vq.codes(), ids, axis=0).reshape(latents.shape)
    error = drawn - pixels
    squared = jnp.mean(jnp.square(error))
    edges = jnp.mean(jnp.abs(jnp.diff(error, axis=1))) + jnp.mean(jnp.abs(jnp.diff(error, axis=2)))
    stop = jax.lax.stop_gradient
    codebook = jnp.mean(jnp.sum(jnp.square(codes - stop(latents)), -1))
    commitment = jnp.mean(jnp.sum(jnp.square(stop(codes) - latents), -1))
    entropy = entropy_loss(
        latents.reshape(-1, latents.shape[-1]) @ vq.codes().T, config.entropy_temperature
    )
    total = (
        squared
        + config.l1 * jnp.mean(jnp.abs(error))
        + config.edges * edges
        + config.codebook * codebook
        + config.commitment * commitment
        + config.entropy * entropy
    )
    used = jnp.zeros(vq.codebook.shape[0]).at[ids.reshape(-1)].set(1.0)
    return total, {
        "psnr": 10 * jnp.log10(4.0 / squared),
        "commitment": commitment,
        "entropy": entropy,
        "codes_used": used.mean(),
    }
