"""Parameter declaration and the basic layers.

Dims: B batch, T tokens, D features in, F features out, G groups, C channels.

A parameter is declared once, by `param`: its shape, its initialiser and the logical axes from
which sharding derives (`janus_jax.sharding`). Layers hold parameters and static numbers only, so
`nnx.split` gives `(graphdef, params)` and everything else is plain JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import initializers

Initializer = Callable[[Any, Sequence[int], Any], jax.Array]


class ShapesOnly(nnx.Rngs):
    """In the place of real keys: `param` then declares shape and dtype and makes no array.

    Tracing the initialisers of a billion-parameter model takes ten seconds, and nobody who asks
    for shapes needs them.
    """

    def __init__(self):
        super().__init__(0)


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    init: Initializer,
    dtype: Any,
) -> nnx.Param:
    """Declares one parameter.

    Args:
      rngs: source of the initialisation key (stream `params`), or `ShapesOnly()`.
      shape: shape of the array.
      axes: one logical axis name (or None) for each dimension.
      init: `init(key, shape, dtype)`.
      dtype: storage dtype.

    Returns:
      The parameter, carrying `axes` as metadata; its value is a `jax.ShapeDtypeStruct` under
      `ShapesOnly`.

    Raises:
      ValueError: `axes` and `shape` differ in length.
    """
    if len(axes) != len(shape):
        raise ValueError(f"a parameter of shape {shape} needs {len(shape)} axes, got {axes}")
    if isinstance(rngs, ShapesOnly):
        return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), axes=axes)
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes)


class Linear(nnx.Module):
    """`x @ kernel + bias`, kernel [D, F], computed in `dtype`.

    `scale` float32 [F] is there where the kernel is int8 (`janus_jax.quantize`).
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        features_in: int,
        features_out: int,
        axes: tuple[str | None, str | None],
        *,
        bias: bool,
        dtype: Any,
        param_dtype: Any,
        init: Initializer | None = None,
    ):
        # LeCun scaling keeps activations at unit variance at any width, so one recipe serves
        # the tiny model and the published ones (whose weights are loaded anyway).
        self.kernel = param(
            rngs,
            (features_in, features_out),
            axes,
            init or initializers.lecun_normal(),
            param_dtype,
        )
        self.bias = (
            param(rngs, (features_out,), (axes[1],), initializers.zeros, param_dtype)
            if bias
            else None
        )
        self.scale: nnx.Param | None = None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., F] in `dtype`."""
        x = x.astype(self.dtype)
        if self.scale is None:
            kernel = self.kernel[...].astype(self.dtype)
            y = jnp.matmul(x, kernel, precision=precision(self.dtype))
        else:
            y = int8_product(x, self.kernel[...])
            y = (y * self.scale[...]).astype(self.dtype)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


# float32 numbers of an int8 kernel that a CPU widens at a time: 8 MB, which its cache holds.
_WIDENED = 2**21


def int8_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel` in x's dtype, for an int8 kernel; scales are the caller's.

    Accelerators read int8 and widen it on the way into the matrix unit. XLA on a CPU would instead
    multiply by a scalar loop, at a thirtieth of the speed (docs/LOG.md), so there the kernel is
    widened block by block into the cache and multiplied from it, summed in float32.

    Args:
      x: [..., D], float.
      kernel: int8 [D, F].

    Returns:
      [..., F] in x's dtype.
    """
    return lax.platform_dependent(
        x, kernel, cpu=_blocked_product, default=lambda x, kernel: x @ kernel.astype(x.dtype)
    )


def _blocked_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    d, f = kernel.shape
    block = 512
    while block > 16 and block * f > _WIDENED:
        block //= 2
    wide = x.astype(jnp.float32)

    def add(i: jax.Array, y: jax.Array) -> jax.Array:
        columns = lax.dynamic_slice_in_dim(wide, i * block, block, axis=-1)
        rows = lax.dynamic_slice_in_dim(kernel, i * block, block, axis=0)
        return y + columns @ rows.astype(jnp.float32)

    blocks = d // block
    y = jnp.zeros((*x.shape[:-1], f), jnp.float32)
    if blocks:
        y = lax.fori_loop(0, blocks, add, y)
    if d % block:
        rest = blocks * block
        y = y + wide[..., rest:] @ kernel[rest:].astype(jnp.float32)
    return y.astype(x.dtype)


class Embedding(nnx.Module):
    """A lookup table [V, D]."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        size: int,
        features: int,
        axes: tuple[str | None, str | None],
        *,
        dtype: Any,
        param_dtype: Any,
        init: Initializer,
    ):
        self.embedding = param(rngs, (size, features), axes, init, param_dtype)
        self.dtype = dtype

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Int ids [...] -> [..., D] in `dtype`."""
        return jnp.take(self.embedding[...], ids, axis=0, mode="clip").astype(self.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm over the last dimension, statistics in float32."""

    def __init__(self, rngs: nnx.Rngs, features: int, *, eps: float, param_dtype: Any):
        self.scale = param(rngs, (features,), ("norm",), initializers.ones, param_dtype)
        self.bias = param(rngs, (features,), ("norm",), initializers.zeros, param_dtype)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D], dtype kept."""
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMSNorm over the last dimension in float32, as Llama has it."""

    def __init__(self, rngs: nnx.Rngs, features: int, *, eps: float, param_dtype: Any):
        self.scale = param(rngs, (features,), ("norm",), initializers.ones, param_dtype)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D], dtype kept."""
        y = x.astype(jnp.float32)
        y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        # The reference rounds to the compute dtype before it scales.
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)


class GroupNorm(nnx.Module):
    """GroupNorm over channels-last pictures, statistics in float32."""

    def __init__(self, rngs: nnx.Rngs, channels: int, *, groups: int, eps: float, param_dtype: Any):
        self.scale = param(rngs, (channels,), ("norm",), initializers.ones, param_dtype)
        self.bias = param(rngs, (channels,), ("norm",), initializers.zeros, param_dtype)
        self.groups, self.eps = groups, eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, Y, X, C] -> [B, Y, X, C], dtype kept."""
        b, h, w, c = x.shape
        y = x.astype(jnp.float32).reshape(b, h * w, self.groups, c // self.groups)
        y = y - y.mean((1, 3), keepdims=True)
        y = y * lax.rsqrt(jnp.square(y).mean((1, 3), keepdims=True) + self.eps)
        y = y.reshape(b, h, w, c) * self.scale[...] + self.bias[...]
        return y.astype(x.dtype)


class Conv(nnx.Module):
    """2-D convolution, channels last, kernel HWIO, bias.

    `padding` takes what `lax.conv_general_dilated` takes.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int,
        stride: int = 1,
        padding: str | Sequence[tuple[int, int]] = "SAME",
        axes: tuple[str | None, str | None] = (None, "conv_out"),
        dtype: Any,
        param_dtype: Any,
    ):
        self.kernel = param(
            rngs,
            (kernel, kernel, channels_in, channels_out),
            (None, None, *axes),
            initializers.lecun_normal(in_axis=(0, 1, 2)),
            param_dtype,
        )
        self.bias = param(rngs, (channels_out,), (axes[1],), initializers.zeros, param_dtype)
        self.stride, self.dtype = stride, dtype
        self.padding = padding if isinstance(padding, str) else tuple(padding)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, Y, X, C_in] -> [B, Y', X', C_out] in `dtype`."""
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision(self.dtype),
        )
        return y + self.bias[...].astype(self.dtype)


def precision(dtype: Any) -> lax.Precision | None:
    """What products in a dtype are asked of XLA: float32 means float32.

    TPUs and GPUs would multiply float32 in bfloat16 or TF32 passes. Whoever chooses float32, and
    the VQ tokenizer that always does, wants its digits; other dtypes take the default.
    """
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def gelu(x: jax.Array) -> jax.Array:
    """Exact (erf) GELU, as everywhere in Janus; `jax.nn.gelu` defaults to the tanh form."""
    return jax.nn.gelu(x, approximate=False)


def tap(taps: dict[str, jax.Array] | None, name: str, x: jax.Array) -> jax.Array:
    """Records `x` under `name` when the caller asked for intermediates; returns `x`."""
    if taps is not None:
        taps[name] = x
    return x
