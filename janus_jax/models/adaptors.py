"""The small modules between the encoders and the language model.

Dims: B batch, P image tokens, I encoder width, D language-model width, K codes.

Both aligners and the image head are two Linear layers with an exact GELU between them (Janus
paper, arXiv 2410.13848, section 3.1; checked against the published checkpoints).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from janus_jax.nn.layers import Linear, gelu


class Aligner(nnx.Module):
    """Maps encoder features or code embeddings into the language model's input space.

    `axis` is the logical axis of the features: None where they are too few to be split.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        features: int,
        width: int,
        *,
        axis: str | None,
        dtype: Any,
        param_dtype: Any,
    ):
        kwargs: dict[str, Any] = dict(bias=True, dtype=dtype, param_dtype=param_dtype)
        self.fc1 = Linear(rngs, features, width, (axis, "mlp"), **kwargs)
        self.fc2 = Linear(rngs, width, width, ("mlp", "embed"), **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., I] -> [..., D]."""
        return self.fc2(gelu(self.fc1(x)))


class ImageHead(nnx.Module):
    """Scores the codes of the next image token; takes the place of `lm_head` while drawing."""

    def __init__(self, rngs: nnx.Rngs, width: int, codes: int, *, dtype: Any, param_dtype: Any):
        kwargs: dict[str, Any] = dict(bias=True, dtype=dtype, param_dtype=param_dtype)
        self.proj = Linear(rngs, width, width, ("embed", "mlp"), **kwargs)
        # "mlp" and "vocab" are both split by the tensor axis; one matrix cannot have it twice.
        self.out = Linear(rngs, width, codes, ("embed", "vocab"), **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> logits [..., K], float32."""
        return self.out(gelu(self.proj(x))).astype(jnp.float32)
