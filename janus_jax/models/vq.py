"""The generation tokenizer: LlamaGen's VQ-16 (arXiv 2406.06525).

A VQGAN with a small codebook of unit vectors.

Dims: B batch, Y X picture sides, P codes of a picture, Z latent channels, C code width, K codes.

The encoder and decoder are convolutional. Attention stands only at the deepest level (after each
residual block) and in the middle. Encoding compares unit vectors with unit codes, as the
reference does; transformers 5.23 leaves that normalisation out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from janus_jax.config import VQConfig
from janus_jax.nn.attention import attention
from janus_jax.nn.layers import Conv, GroupNorm, param, precision, tap

# Fixed in the published weights and in every reader of them.
NORM_GROUPS = 32
NORM_EPS = 1e-6
NORMALIZE_EPS = 1e-12


def l2_normalize(x: jax.Array) -> jax.Array:
    """Scales the last dimension to unit length, with the reference's epsilon (1e-12)."""
    # The sum is floored before the root: the root of an exact zero has no finite gradient.
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, NORMALIZE_EPS**2))


def _norm(rngs: nnx.Rngs, channels: int, param_dtype: Any) -> GroupNorm:
    return GroupNorm(rngs, channels, groups=NORM_GROUPS, eps=NORM_EPS, param_dtype=param_dtype)


class ResBlock(nnx.Module):
    """GroupNorm, swish, conv, twice; a 1x1 shortcut where the channels change."""

    def __init__(self, rngs: nnx.Rngs, c_in: int, c_out: int, *, dtype: Any, param_dtype: Any):
        kwargs: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
        self.norm1 = _norm(rngs, c_in, param_dtype)
        self.conv1 = Conv(rngs, c_in, c_out, kernel=3, **kwargs)
        self.norm2 = _norm(rngs, c_out, param_dtype)
        self.conv2 = Conv(rngs, c_out, c_out, kernel=3, **kwargs)
        self.shortcut = Conv(rngs, c_in, c_out, kernel=1, **kwargs) if c_in != c_out else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, Y, X, C_in] -> [B, Y, X, C_out]."""
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class AttnBlock(nnx.Module):
    """One-head attention over all positions, with 1x1 convs for its projections."""

    def __init__(self, rngs: nnx.Rngs, channels: int, *, dtype: Any, param_dtype: Any):
        kwargs: dict[str, Any] = dict(kernel=1, dtype=dtype, param_dtype=param_dtype)
        self.norm = _norm(rngs, channels, param_dtype)
        self.q = Conv(rngs, channels, channels, **kwargs)
        self.k = Conv(rngs, channels, channels, **kwargs)
        self.v = Conv(rngs, channels, channels, **kwargs)
        self.out = Conv(rngs, channels, channels, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, Y, X, C] -> [B, Y, X, C]."""
        b, h, w, c = x.shape
        y = self.norm(x)
        q, k, v = (conv(y).reshape(b, h * w, 1, c) for conv in (self.q, self.k, self.v))
        return x + self.out(attention(q, k, v, None, scale=c**-0.5).reshape(b, h, w, c))


class Mid(nnx.Module):
    """Residual block, attention, residual block."""

    def __init__(self, rngs: nnx.Rngs, channels: int, **kwargs: Any):
        self.res1 = ResBlock(rngs, channels, channels, **kwargs)
        self.attn = AttnBlock(rngs, channels, **kwargs)
        self.res2 = ResBlock(rngs, channels, channels, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, Y, X, C] -> [B, Y, X, C]."""
        return self.res2(self.attn(self.res1(x)))


class Level(nnx.Module):
    """The residual blocks of one resolution, and the way to the next one."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        c_in: int,
        c_out: int,
        num_res: int,
        *,
        with_attention: bool,
        downsample: bool = False,
        upsample: bool = False,
        **kwargs: Any,
    ):
        widths = [c_in] + [c_out] * num_res
        self.res = nnx.List(
            [ResBlock(rngs, widths[r], widths[r + 1], **kwargs) for r in range(num_res)]
        )
        self.attn = nnx.List(
            [AttnBlock(rngs, c_out, **kwargs) for _ in range(num_res if with_attention else 0)]
        )
        # Padded right and bottom only, which is not what "SAME" would do.
        self.downsample = (
            Conv(rngs, c_out, c_out, kernel=3, stride=2, padding=((0, 1), (0, 1)), **kwargs)
            if downsample
            else None
        )
        self.upsample = Conv(rngs, c_out, c_out, kernel=3, **kwargs) if upsample else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, Y, X, C_in] -> [B, Y', X', C_out]."""
        for i, res in enumerate(self.res):
            x = res(x)
            if self.attn:
                x = self.attn[i](x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x.repeat(2, axis=1).repeat(2, axis=2))
        return x


class Encoder(nnx.Module):
    """Picture to latents: levels from the finest to the deepest."""

    def __init__(self, rngs: nnx.Rngs, config: VQConfig, **kwargs: Any):
        widths = [config.base_channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = Conv(rngs, 3, config.base_channels, kernel=3, **kwargs)
        self.down = nnx.List(
            [
                Level(
                    rngs,
                    ([config.base_channels, *widths])[i],
                    width,
                    config.num_res_blocks,
                    with_attention=i == last,
                    downsample=i != last,
                    **kwargs,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.mid = Mid(rngs, widths[-1], **kwargs)
        self.norm_out = _norm(rngs, widths[-1], kwargs["param_dtype"])
        self.conv_out = Conv(rngs, widths[-1], config.latent_channels, kernel=3, **kwargs)

    def __call__(self, pixels: jax.Array, taps: dict[str, jax.Array] | None = None) -> jax.Array:
        """[B, S, S, 3] in [-1, 1] -> [B, S/f, S/f, Z]."""
        x = self.conv_in(pixels)
        for i, level in enumerate(self.down):
            x = tap(taps, f"vq/encoder/down/{i}", level(x))
        x = tap(taps, "vq/encoder/mid", self.mid(x))
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Decoder(nnx.Module):
    """Latents to picture: levels from the deepest (`up/0`) to the finest."""

    def __init__(self, rngs: nnx.Rngs, config: VQConfig, **kwargs: Any):
        widths = [config.base_channels * m for m in reversed(config.channel_multipliers)]
        last = len(widths) - 1
        self.conv_in = Conv(rngs, config.latent_channels, widths[0], kernel=3, **kwargs)
        self.mid = Mid(rngs, widths[0], **kwargs)
        self.up = nnx.List(
            [
                Level(
                    rngs,
                    ([widths[0], *widths])[i],
                    width,
                    config.num_res_blocks + 1,
                    with_attention=i == 0,
                    upsample=i != last,
                    **kwargs,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.norm_out = _norm(rngs, widths[-1], kwargs["param_dtype"])
        self.conv_out = Conv(rngs, widths[-1], 3, kernel=3, axes=("conv_out", None), **kwargs)

    def __call__(self, latents: jax.Array, taps: dict[str, jax.Array] | None = None) -> jax.Array:
        """[B, S/f, S/f, Z] -> [B, S, S, 3], about [-1, 1]."""
        x = tap(taps, "vq/decoder/mid", self.mid(self.conv_in(latents)))
        for i, level in enumerate(self.up):
            x = tap(taps, f"vq/decoder/up/{i}", level(x))
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class VQTokenizer(nnx.Module):
    """Encoder, nearest-code quantiser and decoder."""

    def __init__(self, rngs: nnx.Rngs, config: VQConfig, *, dtype: Any, param_dtype: Any):
        kwargs: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
        self.encoder = Encoder(rngs, config, **kwargs)
        self.decoder = Decoder(rngs, config, **kwargs)
        self.quant_conv = Conv(
            rngs, config.latent_channels, config.codebook_dim, kernel=1, axes=(None, None), **kwargs
        )
        self.post_quant_conv = Conv(
            rngs, config.codebook_dim, config.latent_channels, kernel=1, **kwargs
        )
        self.codebook = param(
            rngs,
            (config.codebook_size, config.codebook_dim),
            (None, None),
            initializers.normal(1.0),
            param_dtype,
        )

    def latents(self, pixels: jax.Array, taps: dict[str, jax.Array] | None = None) -> jax.Array:
        """Unit-length latents [B, Y, X, C] float32 of pictures [B, S, S, 3] in [-1, 1]."""
        x = self.quant_conv(self.encoder(pixels, taps)).astype(jnp.float32)
        return l2_normalize(x)

    def codes(self) -> jax.Array:
        """Unit-length codebook [K, C] float32."""
        return l2_normalize(self.codebook[...].astype(jnp.float32))

    def quantize(self, latents: jax.Array) -> jax.Array:
        """Ids of the nearest codes: unit latents [B, Y, X, C] -> [B, P] int32, row by row."""
        flat = latents.reshape(latents.shape[0], -1, latents.shape[-1])
        # Between unit vectors the nearest code is the one with the largest inner product.
        # In fewer digits than float32 another code can come out nearest.
        near = jnp.matmul(flat, self.codes().T, precision=precision(jnp.float32))
        return jnp.argmax(near, axis=-1).astype(jnp.int32)

    def encode(self, pixels: jax.Array, taps: dict[str, jax.Array] | None = None) -> jax.Array:
        """Pictures [B, S, S, 3] in [-1, 1] -> ids [B, P] int32, row-major."""
        return self.quantize(self.latents(pixels, taps))

    def decode_latents(
        self, latents: jax.Array, taps: dict[str, jax.Array] | None = None
    ) -> jax.Array:
        """Code vectors [B, Y, X, C] -> pictures [B, S, S, 3], about [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents), taps).astype(jnp.float32)

    def decode(self, ids: jax.Array, taps: dict[str, jax.Array] | None = None) -> jax.Array:
        """Ids [B, P] of a square picture -> pictures [B, S, S, 3] float32, about [-1, 1]."""
        side = round(ids.shape[1] ** 0.5)
        codes = jnp.take(self.codes(), ids, axis=0, mode="clip")
        return self.decode_latents(codes.reshape(ids.shape[0], side, side, -1), taps)
