"""Causal attention within the segments of packed rows, by the best kernel of each platform.

Dims: B rows, T tokens, N query heads, K key heads, H head width.

TPU: splash attention (a Pallas kernel, run on each device's own rows and heads). GPU in half
precision: cuDNN through `jax.nn.dot_product_attention`, which is given the mask. Elsewhere: blocks
of queries, made again in the backward pass. No [T, T] array of scores exists; cuDNN is given a mask
of that size.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.nn.attention import attention

Kernel = Literal["splash", "cudnn", "chunked"]

CHUNK = 512
# Queries and keys that splash attention works on at a time; it takes whole numbers of `LANES`.
BLOCK = 1024
LANES = 128

# Name for remat policies of what attention yields; on TPU also of the sums of its softmax.
CONTEXT = "context"


def kernel_of(platform: str, dtype: Any) -> Kernel:
    """The kernel for a device's `platform` and a compute dtype; `chunked` where none is better.

    cuDNN takes half precision only.
    """
    if platform == "tpu":
        return "splash"
    if platform in ("gpu", "cuda") and jnp.dtype(dtype).itemsize == 2:
        return "cudnn"
    return "chunked"


def segment_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    *,
    scale: float,
    kernel: Kernel,
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention backwards within one's own segment; scores and softmax in float32.

    Args:
      q: [B, T, N, H].
      k: [B, T, K, H], N a multiple of K.
      v: [B, T, K, H].
      segment_ids: int32 [B, T], equal for the tokens of one sample. Padding is a segment like any
        other: what it yields is finite, and nobody reads it.
      scale: multiplies the scores.
      kernel: see `kernel_of`.
      interpret: run splash in the Pallas interpreter (tests).

    Returns:
      [B, T, N, H] in q's dtype, named `CONTEXT` for remat policies.
    """
    if kernel == "splash":
        return _splash(q * scale, k, v, segment_ids, interpret)
    if kernel == "cudnn":
        mask = _visible(segment_ids, segment_ids, 0)[:, None]
        y = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="cudnn")
    else:
        y = _chunked(q, k, v, segment_ids, scale)
    return checkpoint_name(y, CONTEXT)


def _visible(queries: jax.Array, keys: jax.Array, first: jax.Array | int) -> jax.Array:
    """Mask [B, C, T] of the queries [B, C] from slot `first` on, and all keys [B, T]."""
    slots = first + jnp.arange(queries.shape[1])
    causal = slots[:, None] >= jnp.arange(keys.shape[1])
    return causal & (queries[:, :, None] == keys[:, None, :])


def _chunked(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, scale: float
) -> jax.Array:
    t = q.shape[1]
    if t <= CHUNK:
        return attention(q, k, v, _visible(segment_ids, segment_ids, 0), scale=scale)

    @functools.partial(jax.checkpoint, static_argnums=0)
    def block(first: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        here, before = slice(first, first + CHUNK), slice(first + CHUNK)
        seen = _visible(segment_ids[:, here], segment_ids[:, before], first)
        return attention(q[:, here], k[:, before], v[:, before], seen, scale=scale)

    # Unrolled, so that each block reads the keys before its end alone: half of all scores.
    return jnp.concatenate([block(first, q, k, v) for first in range(0, t, CHUNK)], axis=1)


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, interpret: bool
) -> jax.Array:
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        kernel = _splash_kernel(q.shape[1], q.shape[2], 1, interpret)
        return _attend(kernel, q, k, v, segment_ids, segment_ids).swapaxes(1, 2)
    # Pallas kernels are not partitioned: each device runs one on its own rows, heads and queries.
    rows, parts = ("data", "fsdp"), mesh.shape["sequence"]
    kernel = _splash_kernel(q.shape[1] // mesh.shape["tensor"], q.shape[2], parts, interpret)
    # Which blocks of keys a device's queries see depends on where in the row they are.
    blocks = NamedSharding(mesh, PartitionSpec(None, "sequence"))
    queries = PartitionSpec(rows, "tensor", "sequence", None)
    keys = PartitionSpec(rows, "tensor", None, None)
    y = jax.shard_map(
        _attend,
        in_specs=(
            kernel.manual_sharding_spec(blocks),
            queries,
            keys,
            keys,
            PartitionSpec(rows, "sequence"),
            PartitionSpec(rows, None),
        ),
        out_specs=queries,
        check_vma=False,
    )(kernel, q, k, v, segment_ids, segment_ids)
    return y.swapaxes(1, 2)


def _splash_kernel(heads: int, length: int, parts: int, interpret: bool) -> Any:
    """The kernel of one device's `heads`, its queries being one of `parts` parts of the rows."""
    block = math.gcd(BLOCK, length // parts)
    compute = min(512, block)
    # Queries' gradients have a kernel of their own: the fused one writes them once for each block
    # of keys, and adding those up costs about as much as making the scores again (docs/LOG.md).
    sizes = splash_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=compute,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=compute,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = splash_mask.MultiHeadMask([splash_mask.CausalMask((length, length))] * heads)
    return splash_kernel.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=parts,
        residual_checkpoint_name=CONTEXT,
        interpret=interpret,
    )


def _attend(
    kernel: Any,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    query_ids: jax.Array,
    key_ids: jax.Array,
) -> jax.Array:
    """Rows of heads [B, N, T, H] on one device; keys [B, K, S, H] may be fewer and longer."""
    # Grouped heads share keys; the kernel takes as many of one as of the other.
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))

    def row(q: jax.Array, k: jax.Array, v: jax.Array, qi: jax.Array, ki: jax.Array) -> jax.Array:
        return kernel(q, k, v, segment_ids=splash_kernel.SegmentIds(qi, ki))

    return jax.vmap(row)(q, k, v, query_ids, key_ids)
