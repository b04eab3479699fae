"""SigLIP, the understanding encoder (arXiv 2303.15343; ViT-L/16 at 384 in the published models).

Dims: B batch, P patches, W width, N heads, H head width, F MLP width.

A pre-LN transformer over patches with a learned position embedding and no class token; all P
patch features are the output. The attention-pool head of the published tower is not part of
Janus and is not built.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax.nn import initializers

from janus_jax.config import SiglipConfig
from janus_jax.nn.attention import attention
from janus_jax.nn.layers import Conv, LayerNorm, Linear, gelu, param, tap
from janus_jax.sharding import constrain


class SelfAttention(nnx.Module):
    """Multi-head attention with biases; full unless a mask is given."""

    def __init__(self, rngs: nnx.Rngs, width: int, num_heads: int, *, dtype: Any, param_dtype: Any):
        kwargs: dict[str, Any] = dict(bias=True, dtype=dtype, param_dtype=param_dtype)
        self.q = Linear(rngs, width, width, ("embed", "heads"), **kwargs)
        self.k = Linear(rngs, width, width, ("embed", "heads"), **kwargs)
        self.v = Linear(rngs, width, width, ("embed", "heads"), **kwargs)
        self.out = Linear(rngs, width, width, ("heads", "embed"), **kwargs)
        self.num_heads = num_heads

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, P, W] -> [B, P, W]; mask [B, P, P] bool."""
        b, p, w = x.shape
        heads = (b, p, self.num_heads, w // self.num_heads)
        q, k, v = (layer(x).reshape(heads) for layer in (self.q, self.k, self.v))
        y = attention(q, k, v, mask, scale=(w // self.num_heads) ** -0.5)
        return self.out(y.reshape(b, p, w))


class Mlp(nnx.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, rngs: nnx.Rngs, width: int, mlp_dim: int, *, dtype: Any, param_dtype: Any):
        kwargs: dict[str, Any] = dict(bias=True, dtype=dtype, param_dtype=param_dtype)
        self.fc1 = Linear(rngs, width, mlp_dim, ("embed", "mlp"), **kwargs)
        # Gathered by its columns, of which a chip of a pod has four, the TPU compiler would copy it
        # into another layout before each product.
        self.fc2 = Linear(rngs, mlp_dim, width, ("mlp_rows", None), **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, P, W] -> [B, P, W]."""
        return self.fc2(gelu(self.fc1(x)))


class Block(nnx.Module):
    """One pre-LN transformer block."""

    def __init__(self, rngs: nnx.Rngs, config: SiglipConfig, *, dtype: Any, param_dtype: Any):
        w, eps = config.width, config.layer_norm_eps
        kwargs: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
        self.norm1 = LayerNorm(rngs, w, eps=eps, param_dtype=param_dtype)
        self.attn = SelfAttention(rngs, w, config.num_heads, **kwargs)
        self.norm2 = LayerNorm(rngs, w, eps=eps, param_dtype=param_dtype)
        self.mlp = Mlp(rngs, w, config.mlp_dim, **kwargs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, P, W] -> [B, P, W]."""
        x = constrain(x, "batch", "length", None)
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


_run_block = jax.jit(Block.__call__)  # traced once for all blocks, as the layers of the Llama


class Siglip(nnx.Module):
    """The vision tower: patches, blocks, final norm."""

    def __init__(self, rngs: nnx.Rngs, config: SiglipConfig, *, dtype: Any, param_dtype: Any):
        kwargs: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
        self.patch_embed = Conv(
            rngs,
            3,
            config.width,
            kernel=config.patch_size,
            stride=config.patch_size,
            padding="VALID",
            axes=(None, "embed"),
            **kwargs,
        )
        self.pos_embed = param(
            rngs,
            (config.num_patches, config.width),
            (None, "embed"),
            initializers.normal(0.02),
            param_dtype,
        )
        self.blocks = nnx.List([Block(rngs, config, **kwargs) for _ in range(config.depth)])
        self.norm = LayerNorm(
            rngs, config.width, eps=config.layer_norm_eps, param_dtype=param_dtype
        )

    def __call__(self, pixels: jax.Array, taps: dict[str, jax.Array] | None = None) -> jax.Array:
        """Patch features of normalised pictures.

        Args:
          pixels: [B, S, S, 3] float32, normalised with mean 0.5 and standard deviation 0.5.
          taps: filled with every block's output (`vision/blocks/{i}`) when given.

        Returns:
          [B, P, W], rows of patches from the top, after the final norm.
        """
        x = self.patch_embed(pixels)
        x = x.reshape(x.shape[0], -1, x.shape[-1]) + self.pos_embed[...].astype(x.dtype)
        x = tap(taps, "vision/embed", x)
        for i, block in enumerate(self.blocks):
            x = tap(taps, f"vision/blocks/{i}", _run_block(block, x))
        return tap(taps, "vision/norm", self.norm(x))
