"""The model as it is trained: equal layers stacked and scanned, activations named for remat.

Dims: B rows, T tokens, D width, L layers.

A scanned model is a `JanusModel` of one decoder layer and one encoder block whose parameters have a
leading axis over all layers: one layer is compiled, whatever the depth, and its weights are
gathered while the layer before it computes. `stack` and `unstack` translate the parameters; on disk
and at inference they are per layer. The tokenizer is left out: its codes are made beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from janus_jax.config import JanusConfig
from janus_jax.models.janus import JanusModel
from janus_jax.models.llama import Attention, Layer
from janus_jax.nn.layers import Linear, gelu, precision
from janus_jax.nn.segments import Kernel, segment_attention
from janus_jax.sharding import constrain
from train.config import Remat

# Activations of a decoder layer that the backward pass finds instead of making them again.
SAVED: dict[Remat, tuple[str, ...]] = {
    "full": (),
    "qkv": ("q", "k", "v"),
    "context": ("q", "k", "v", "context"),
    "minimal": ("q", "k", "v", "context", "attn_out", "gate", "up"),
}
_STACKS = (("llm", "layers"), ("vision", "blocks"))


class ScannedJanus(JanusModel):
    """`JanusModel` over stacked parameters.

    Args:
      config: the architecture.
      rngs: initialisation keys; parameters made here are of one layer, see `stack`.
      dtype: compute dtype.
      kernel: attention kernel, see `janus_jax.nn.segments.kernel_of`.
      remat: what each layer keeps for the backward pass: everything (`none`), or its input and the
        activations of `SAVED`.
    """

    def __init__(
        self,
        config: JanusConfig,
        rngs: nnx.Rngs,
        *,
        dtype: Any = jnp.float32,
        kernel: Kernel = "chunked",
        remat: Remat = "full",
    ):
        one = replace(
            config, llm=replace(config.llm, depth=1), vision=replace(config.vision, depth=1)
        )
        super().__init__(one, rngs, dtype=dtype)
        del self.vq
        self.kernel: Kernel = kernel
        self.remat: Remat = remat

    def encode_image(self, pixels: jax.Array, taps: Any = None) -> jax.Array:
        """Normalised pictures [N, S, S, 3] -> features [N, P, D]; `taps` is not filled."""
        del taps
        tower = self.vision
        x = tower.patch_embed(pixels)
        x = x.reshape(x.shape[0], -1, x.shape[-1]) + tower.pos_embed[...].astype(x.dtype)
        x = self._scan(tower.blocks[0], lambda block, x: block(x), x, ())
        return self.aligner(tower.norm(x))

    def hidden(
        self, x: jax.Array, positions: jax.Array, mask: jax.Array, taps: Any = None
    ) -> jax.Array:
        """Packed rows: embeddings [B, T, D], positions and segment ids [B, T] -> [B, T, D]."""
        del taps
        rope = self.llm.rope(positions)

        def run(layer: Layer, x: jax.Array) -> jax.Array:
            return self._layer(layer, x, rope, mask)

        saved = SAVED.get(self.remat, ())
        return self.llm.norm(self._scan(self.decoder(), run, x, saved))

    def decoder(self) -> Layer:
        """The decoder layers, stacked, as `hidden` scans over them."""
        return self.llm.layers[0]

    def image_logits(self, hidden: jax.Array) -> jax.Array:
        """[G, C, D] -> [G, C, K] float32."""
        head = self.image_head
        # Without this the partitioner (jaxlib 0.10.1) lays the state along `tensor`, and on a mesh
        # of data, fsdp and tensor its gradient comes back without the sum over that axis.
        h = constrain(gelu(head.proj(hidden)), "batch", None, None)
        return head.out(h).astype(jnp.float32)

    def _layer(self, layer: Layer, x: jax.Array, rope: Any, segment_ids: jax.Array) -> jax.Array:
        x = constrain(x, "batch", "length", None)
        attn, mlp = layer.attn, layer.mlp
        q, k, v = self._project(attn, layer.attn_norm(x), rope)
        y = segment_attention(q, k, v, segment_ids, scale=attn.head_dim**-0.5, kernel=self.kernel)
        y = _heads_out(attn.out, y) if self.kernel == "splash" else attn.merge(y)
        x = x + checkpoint_name(y, "attn_out")
        h = layer.mlp_norm(x)
        gate, up = checkpoint_name(mlp.gate(h), "gate"), checkpoint_name(mlp.up(h), "up")
        return x + mlp.down(jax.nn.silu(gate) * up)

    def _project(
        self, attn: Attention, x: jax.Array, rope: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`Attention.project`, its results named; for splash in the order [B, N, T, H] it reads."""
        if self.kernel != "splash":
            q, k, v = attn.project(x, rope)
            named = ((q, "q"), (k, "k"), (v, "v"))
            q, k, v = (checkpoint_name(y, name) for y, name in named)
            return q, k, v
        b, t, _ = x.shape
        shape = (b, t, -1, attn.head_dim)
        q, k, v = (y(x).reshape(shape).swapaxes(1, 2) for y in (attn.q, attn.k, attn.v))
        named = ((rotated(q, *rope), "q"), (rotated(k, *rope), "k"), (v, "v"))
        q, k, v = (checkpoint_name(y, name).swapaxes(1, 2) for y, name in named)
        return q, k, v

    def _scan(
        self,
        layers: nnx.Module,
        run: Callable[[Any, jax.Array], jax.Array],
        x: jax.Array,
        saved: tuple[str, ...],
    ) -> jax.Array:
        graphdef, params = nnx.split(layers)

        def body(x: jax.Array, one: nnx.State) -> tuple[jax.Array, None]:
            return run(nnx.merge(graphdef, one), x), None

        if self.remat != "none":
            policy = jax.checkpoint_policies.save_only_these_names(*saved)
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        return jax.lax.scan(body, x, params)[0]


def _heads_out(out: Any, y: jax.Array) -> jax.Array:
    """`Attention.merge` for the heads that splash gives, [B, T, N, H] -> [B, T, D].

    They lie in memory as [B, N, T, H]. A product over heads and their widths reads them there,
    where `merge` first brings them together (docs/LOG.md). An adapted matrix has its own product.
    """
    if not isinstance(out, Linear):
        return out(y.reshape(*y.shape[:2], -1))
    kernel = out.kernel[...].astype(y.dtype).reshape(*y.shape[2:], -1)
    return jnp.einsum("btnh,nhd->btd", y, kernel, precision=precision(y.dtype))


def rotated(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """`janus_jax.nn.rope.apply_rope` for [B, N, T, H], the halves swapped by a product.

    A matrix of ones and minus ones swaps them exactly, and on a TPU it costs less than to cut the
    lanes in two and put them together again (docs/LOG.md).

    Args:
      x: [B, N, T, H].
      cos: [B, T, 1, H] float32.
      sin: [B, T, 1, H] float32.
    """
    h = x.shape[-1]
    # A literal: made on the devices, it would be split over them and gathered again.
    swap = np.roll(np.eye(h), h // 2, axis=1) * np.where(np.arange(h) < h // 2, -1, 1)
    swapped = jnp.einsum(
        "bnth,hk->bntk", x, jnp.asarray(swap, x.dtype), precision=precision(x.dtype)
    )
    cos, sin = cos.swapaxes(1, 2), sin.swapaxes(1, 2)
    return (x.astype(jnp.float32) * cos + swapped.astype(jnp.float32) * sin).astype(x.dtype)


def stack(params: nnx.State) -> nnx.State:
    """Parameters per layer -> parameters of a scanned model; concrete, traced or abstract.

    The tokenizer's parameters are dropped.
    """
    flat, stacks = {}, {}
    for path, variable in nnx.to_flat_state(params):
        if path[0] == "vq":
            continue
        if path[:2] in _STACKS:
            stacks.setdefault((*path[:2], 0, *path[3:]), {})[path[2]] = variable
        else:
            flat[path] = variable
    for path, layers in stacks.items():
        variables = [layers[i] for i in range(len(layers))]
        values = [variable.get_value() for variable in variables]
        if isinstance(values[0], jax.ShapeDtypeStruct):
            value: Any = jax.ShapeDtypeStruct((len(values), *values[0].shape), values[0].dtype)
        else:
            value = jnp.stack(values)
        flat[path] = nnx.Param(value, axes=(None, *variables[0].get_metadata("axes")))
    return nnx.from_flat_state(flat)


Leaf = Callable[[Callable[[], jax.Array]], Any]
"""What becomes of a parameter of one layer, given what makes it: the array itself takes memory."""


def made(make: Callable[[], jax.Array]) -> jax.Array:
    """The `Leaf` that keeps the array."""
    return make()


def layer_of(path: tuple[Any, ...], stacked: jax.Array, number: int) -> jax.Array:
    """A layer of a stacked parameter."""
    del path
    return stacked[number]  # arrays over several processes have no iterator


def unstack(
    params: nnx.State,
    leaf: Leaf = made,
    layer: Callable[[tuple[Any, ...], jax.Array, int], jax.Array] = layer_of,
) -> nnx.State:
    """Inverse of `stack`, without the tokenizer.

    Args:
      params: parameters of a scanned model.
      leaf: what to keep of each parameter; what it lets go of takes no memory when the next is
        made.
      layer: `layer(path, stacked, number)` makes a layer's parameter of the stacked one.
    """
    flat = {}
    for path, variable in nnx.to_flat_state(params):
        value = variable.get_value()
        if path[:2] not in _STACKS:
            flat[path] = variable.replace(leaf(partial(jnp.asarray, value)))
            continue
        axes = variable.get_metadata("axes")[1:]
        for i in range(value.shape[0]):
            one = leaf(partial(layer, path, value, i))
            flat[(*path[:2], i, *path[3:])] = nnx.Param(one, axes=axes)
    return nnx.from_flat_state(flat)
