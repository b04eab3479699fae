"""Weight-only int8: half the memory of bfloat16, and half the bytes that a decoded token reads.

Dims: D inputs, F outputs.

Every matrix of the language model's layers and both heads is stored as int8 with one float32 scale
an output: `kernel[d, f] = round(w[d, f] / scale[f])`, `scale[f] = max_d |w[d, f]| / 127`. Products
are made in the compute dtype (every integer up to 127 is exact in bfloat16) and scaled afterwards.
Token tables, norms, both image encoders and the aligners stay as they are: they are read once a
picture or a row at a time, and every layer would see their errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from janus_jax.functional import GraphDef, Params, flat_params
from janus_jax.nn.layers import Linear

# A smaller scale than the least normal number would be flushed to zero.
_LEAST = 127 * float(np.finfo(np.float32).tiny)


@jax.jit
def quantize_kernel(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Symmetric rounding with a scale for each output.

    Args:
      kernel: [D, F], any float dtype.

    Returns:
      int8 [D, F] within -127..127, and float32 scales [F], positive; an output that is zero
      everywhere, or below 1.5e-36, has scale 1.
    """
    wide = kernel.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=0)
    scale = jnp.where(largest > _LEAST, largest / 127.0, 1.0)
    return jnp.clip(jnp.round(wide / scale), -127, 127).astype(jnp.int8), scale


def quantize(graphdef: GraphDef, params: Params) -> tuple[GraphDef, Params]:
    """Stores the language model's matrices and both heads as int8.

    Args:
      graphdef: static part of a model.
      params: its parameters, concrete (on any mesh) or `jax.ShapeDtypeStruct`s. One matrix at a
        time is replaced.

    Returns:
      graphdef and parameters that every function of `janus_jax.functional` takes.
    """
    model = nnx.merge(graphdef, params)
    del params
    for linear in _matrices(model):
        axes = linear.kernel.get_metadata("axes")
        value = linear.kernel.get_value()
        if isinstance(value, jax.ShapeDtypeStruct):
            kernel, scale = jax.eval_shape(quantize_kernel, value)
        else:
            kernel, scale = quantize_kernel(value)
        linear.kernel = nnx.Param(kernel, axes=axes)
        linear.scale = nnx.data(nnx.Param(scale, axes=(axes[1],)))
    return nnx.split(model)


def quantize_each(
    tensors: Iterable[tuple[str, jax.Array]], like: Params
) -> Iterator[tuple[str, jax.Array]]:
    """Does what `quantize` does with parameters that come one by one, holding none of them.

    Args:
      tensors: path and value of every parameter of a model.
      like: abstract parameters of the quantized one, as `quantize` makes them of abstract ones.

    Yields:
      Path and value of every parameter of the quantized model.
    """
    kept = flat_params(like)
    for path, value in tensors:
        if kept[path].dtype != jnp.int8:
            yield path, value
            continue
        kernel, scale = jax.block_until_ready(quantize_kernel(value))
        del value  # before the next one is read
        yield path, kernel
        yield path.removesuffix("kernel") + "scale", scale


def is_quantized(params: Any) -> bool:
    """Whether parameters are those of a quantized model."""
    return any(np.dtype(leaf.dtype) == np.int8 for leaf in jax.tree.leaves(params))


def _matrices(model: Any) -> list[Linear]:
    """The layers' matrices and both heads, in order."""
    found = [
        linear
        for layer in model.llm.layers
        for linear in (
            layer.attn.q,
            layer.attn.k,
            layer.attn.v,
            layer.attn.out,
            layer.mlp.gate,
            layer.mlp.up,
            layer.mlp.down,
        )
    ]
    return [*found, model.llm.lm_head, model.image_head.proj, model.image_head.out]
