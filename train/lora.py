"""LoRA: the language model's matrices stay as they are and train through low-rank ones beside them.

A matrix W [D, F] acts as W + (alpha / r) A B (Hu et al., 2021, arXiv 2106.09685, section 4.1), with
A [D, r] and B [r, F] in its place among the trained parameters. B begins at zero, so the first step
starts from the model as it is. All layers' A and B are stacked as the scanned model's kernels are,
and lie as they do: A is split where W's inputs are, B where its outputs are.

They are a child of their own, `lora`, beside the parts of the model, so only they have gradients
and optimizer state. `to_layers` adds them to the kernels, for drawing and for the result.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from janus_jax.config import JanusConfig
from janus_jax.functional import abstract
from janus_jax.models.llama import Layer
from janus_jax.nn.layers import Linear, precision
from train.config import LoraConfig
from train.scanned import Leaf, ScannedJanus, layer_of, made, stack, unstack

LORA = "lora"
_OWNERS = {
    **dict.fromkeys(("q", "k", "v", "out"), "attn"),
    **dict.fromkeys(("gate", "up", "down"), "mlp"),
}


class LowRank(nnx.Module):
    """A and B of one kind of matrix in all layers, or, inside the scan, in one.

    Args:
      a: [L, D, r].
      b: [L, r, F].
    """

    def __init__(self, a: nnx.Param, b: nnx.Param):
        self.a, self.b = a, b


class Adapted(nnx.Module):
    """A frozen matrix and what is added to its products.

    Args:
      linear: the matrix.
      low_rank: A and B.
      scale: alpha / r.
    """

    def __init__(self, linear: Linear, low_rank: LowRank, scale: float):
        self.linear, self.low_rank, self.scale = linear, low_rank, scale

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., F] in the matrix's compute dtype."""
        dtype = self.linear.dtype
        how = precision(dtype)
        a, b = (p[...].astype(dtype) for p in (self.low_rank.a, self.low_rank.b))
        added = jnp.matmul(jnp.matmul(x.astype(dtype), a, precision=how), b, precision=how)
        return self.linear(x) + self.scale * added


class LoraJanus(ScannedJanus):
    """A scanned model whose decoder layers go through their low-rank matrices.

    Args:
      config: the architecture.
      rngs: see `ScannedJanus`.
      lora: rank, scale and which matrices.
      **kwargs: see `ScannedJanus`.
    """

    def __init__(self, config: JanusConfig, rngs: nnx.Rngs, *, lora: LoraConfig, **kwargs: Any):
        super().__init__(config, rngs, **kwargs)
        self.lora = nnx.Dict(
            {name: LowRank(*pair) for name, pair in _abstract_pairs(config, lora).items()}
        )
        self.lora_scale = lora.alpha / lora.rank

    def decoder(self) -> Layer:
        """The stacked decoder layer with its chosen matrices adapted."""
        # A copy of the structure, so that the model's own layer stays what its graph says.
        layer: Layer = nnx.merge(*nnx.split(self.llm.layers[0]))
        for name, low_rank in self.lora.items():
            owner = getattr(layer, _OWNERS[name])
            setattr(owner, name, Adapted(getattr(owner, name), low_rank, self.lora_scale))
        return layer


def abstract_lora(config: JanusConfig, lora: LoraConfig) -> nnx.State:
    """The parameters of the child `lora`, as shapes with their logical axes."""
    return nnx.State({n: {"a": a, "b": b} for n, (a, b) in _abstract_pairs(config, lora).items()})


def init_lora(config: JanusConfig, lora: LoraConfig, key: jax.Array) -> nnx.State:
    """First values: A as a matrix of its shape is initialised, B zero."""
    first = initializers.lecun_normal(batch_axis=0)
    made = {}
    for number, (name, (a, b)) in enumerate(_abstract_pairs(config, lora).items()):
        own_key = jax.random.fold_in(key, number)
        made[name] = {
            "a": a.replace(first(own_key, a.shape, a.dtype)),
            "b": b.replace(jnp.zeros(b.shape, b.dtype)),
        }
    return nnx.State(made)


def to_layers(params: nnx.State, lora: LoraConfig, leaf: Leaf = made) -> nnx.State:
    """Parameters a layer at a time, A B added to the kernels in float32; `lora` is gone from them.

    A matrix is added to when `leaf` asks for it, one layer's at a time: all of them in float32, and
    once more a layer at a time, would take several times the memory of the parameters as they are.

    Args:
      params: stacked parameters, with the child `lora`.
      lora: its rank and scale.
      leaf: see `unstack`.
    """
    pairs = {
        _kernel_path(name): tuple(pair[key].get_value() for key in ("a", "b"))
        for name, pair in params[LORA].items()
    }

    def layer(path: tuple[Any, ...], stacked: jax.Array, number: int) -> jax.Array:
        if path not in pairs:
            return layer_of(path, stacked, number)
        return _added(stacked, *pairs[path], number, lora.alpha / lora.rank)

    return unstack(nnx.State({k: v for k, v in params.items() if k != LORA}), leaf, layer)


@jax.jit
def _added(kernel: jax.Array, a: jax.Array, b: jax.Array, number: Any, scale: Any) -> jax.Array:
    """Layer `number` of a kernel [L, D, F] and of A and B: W + scale A B, float32 [D, F]."""
    w, a, b = (jax.lax.dynamic_index_in_dim(x, number, keepdims=False) for x in (kernel, a, b))
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    added = jnp.matmul(a, b, precision=precision(jnp.float32))
    return w.astype(jnp.float32) + added * scale


def _kernel_path(name: str) -> tuple[Any, ...]:
    return ("llm", "layers", 0, _OWNERS[name], name, "kernel")


def _abstract_pairs(
    config: JanusConfig, lora: LoraConfig
) -> dict[str, tuple[nnx.Param, nnx.Param]]:
    kernels = dict(nnx.to_flat_state(stack(abstract(config)[1])))
    pairs = {}
    for name in lora.targets:
        kernel = kernels[_kernel_path(name)]
        layers, features_in, features_out = kernel.shape
        _, axis_in, axis_out = kernel.get_metadata("axes")
        a = jax.ShapeDtypeStruct((layers, features_in, lora.rank), jnp.float32)
        b = jax.ShapeDtypeStruct((layers, lora.rank, features_out), jnp.float32)
        pairs[name] = (
            nnx.Param(a, axes=(None, axis_in, None)),
            nnx.Param(b, axes=(None, None, axis_out)),
        )
    return pairs
