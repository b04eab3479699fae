"""The language model: Llama (arXiv 2302.13971) with an untied head, as Janus uses it.

Dims: B batch, T tokens, S cache slots, D width, N query heads, K key heads, H head width,
F MLP width, V vocabulary.

Inputs are embeddings, because image features and image tokens enter beside text tokens. The
final norm is part of `hidden`, since both heads (text and image) read normalised states.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import initializers

from janus_jax.config import LlamaConfig
from janus_jax.nn.attention import (
    attention,
    cached_attention,
    cached_attention_and_own,
    causal_mask,
)
from janus_jax.nn.cache import KVCache, heads_first, row_major, write_slot
from janus_jax.nn.layers import Embedding, Linear, RMSNorm, tap
from janus_jax.nn.rope import apply_rope, rope_tables
from janus_jax.sharding import constrain


class Attention(nnx.Module):
    """Causal attention with rotary positions and no biases."""

    def __init__(self, rngs: nnx.Rngs, config: LlamaConfig, *, dtype: Any, param_dtype: Any):
        d, h = config.width, config.head_dim
        kwargs: dict[str, Any] = dict(bias=False, dtype=dtype, param_dtype=param_dtype)
        self.q = Linear(rngs, d, config.num_heads * h, ("embed", "heads"), **kwargs)
        self.k = Linear(rngs, d, config.num_kv_heads * h, ("embed", "heads"), **kwargs)
        self.v = Linear(rngs, d, config.num_kv_heads * h, ("embed", "heads"), **kwargs)
        self.out = Linear(rngs, config.num_heads * h, d, ("heads", "embed"), **kwargs)
        self.head_dim, self.scale = h, h**-0.5

    def project(
        self, x: jax.Array, rope: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, T, D] -> rotated q [B, T, N, H], rotated k and plain v [B, T, K, H]."""
        b, t, _ = x.shape
        flat = (self.q(x), self.k(x), self.v(x))
        if t == 1:
            # Else the TPU compiler makes heads within the products of a decode step, and for that
            # copies these three matrices of every layer into another layout at each call.
            flat = lax.optimization_barrier(flat)
        q, k, v = (y.reshape(b, t, -1, self.head_dim) for y in flat)
        return apply_rope(q, *rope), apply_rope(k, *rope), v

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        """Attention and output projection; mask [B, T, S]; -> [B, T, D]."""
        return self.merge(attention(q, k, v, mask, scale=self.scale))

    def merge(self, y: jax.Array) -> jax.Array:
        """Heads [B, T, N, H] through the output projection -> [B, T, D]."""
        return self.out(y.reshape(*y.shape[:2], -1))


class SwiGLU(nnx.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, rngs: nnx.Rngs, config: LlamaConfig, *, dtype: Any, param_dtype: Any):
        d, f = config.width, config.mlp_dim
        kwargs: dict[str, Any] = dict(bias=False, dtype=dtype, param_dtype=param_dtype)
        self.gate = Linear(rngs, d, f, ("embed", "mlp"), **kwargs)
        self.up = Linear(rngs, d, f, ("embed", "mlp"), **kwargs)
        self.down = Linear(rngs, f, d, ("mlp", "embed"), **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Layer(nnx.Module):
    """One pre-norm decoder layer."""

    def __init__(self, rngs: nnx.Rngs, config: LlamaConfig, *, dtype: Any, param_dtype: Any):
        kwargs: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
        norm: dict[str, Any] = dict(eps=config.rms_norm_eps, param_dtype=param_dtype)
        self.attn_norm = RMSNorm(rngs, config.width, **norm)
        self.attn = Attention(rngs, config, **kwargs)
        self.mlp_norm = RMSNorm(rngs, config.width, **norm)
        self.mlp = SwiGLU(rngs, config, **kwargs)

    def __call__(
        self, x: jax.Array, rope: tuple[jax.Array, jax.Array], mask: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """A whole sequence: [B, T, D] -> ([B, T, D], (k, v) [B, T, K, H])."""
        x = constrain(x, "batch", "length", None)
        q, k, v = self.attn.project(self.attn_norm(x), rope)
        x = x + self.attn.attend(q, k, v, mask)
        return x + self.mlp(self.mlp_norm(x)), (k, v)

    def decode(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        k_cache: jax.Array,
        v_cache: jax.Array,
        slot: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Tokens [B, T, D] against the cache [B, K, S, H] of this layer, written from `slot` on."""
        one_on_tpu = self._attend_then_write if x.shape[1] == 1 else self._write_then_attend
        return lax.platform_dependent(
            x,
            rope,
            mask,
            k_cache,
            v_cache,
            slot,
            tpu=one_on_tpu,
            default=self._write_then_attend,
        )

    def _write_then_attend(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        k_cache: jax.Array,
        v_cache: jax.Array,
        slot: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = self.attn.project(self.attn_norm(x), rope)
        k_cache = write_slot(k_cache, heads_first(k), slot)
        v_cache = write_slot(v_cache, heads_first(v), slot)
        keys, values = k_cache.astype(q.dtype), v_cache.astype(q.dtype)
        x = x + self.attn.merge(cached_attention(q, keys, values, mask, scale=self.attn.scale))
        return x + self.mlp(self.mlp_norm(x)), k_cache, v_cache

    def _attend_then_write(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        k_cache: jax.Array,
        v_cache: jax.Array,
        slot: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The same for one token, in the order that the TPU compiler updates in place.

        Written first, a cache is brought into VMEM, changed there and carried back whole. Here it
        is only read, and written at the end of the layer, when VMEM is needed for other things.
        Other compilers copy a cache that is read before it is written, hence the two orders.
        """
        q, k, v = self.attn.project(self.attn_norm(x), rope)
        before = mask & (jnp.arange(mask.shape[-1]) != slot)
        keys, values = (row_major(c).astype(q.dtype) for c in (k_cache, v_cache))
        y = cached_attention_and_own(q, keys, values, k, v, before, scale=self.attn.scale)
        x = x + self.attn.merge(y)
        x, k, v = lax.optimization_barrier((x + self.mlp(self.mlp_norm(x)), k, v))
        k_cache = write_slot(k_cache, heads_first(k), slot)
        return x, k_cache, write_slot(v_cache, heads_first(v), slot)


# Within a program, a layer that is jitted is traced and lowered once for all layers (XLA puts its
# body in the place of each call), which is most of what a start from the compile cache takes.
_run_layer = jax.jit(Layer.__call__)
_decode_layer = jax.jit(Layer.decode)


class Llama(nnx.Module):
    """Token embedding, decoder layers, final norm and text head."""

    def __init__(self, rngs: nnx.Rngs, config: LlamaConfig, *, dtype: Any, param_dtype: Any):
        kwargs: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
        self.embed = Embedding(
            rngs,
            config.vocab_size,
            config.width,
            ("vocab", "embed"),
            init=initializers.normal(0.02),
            **kwargs,
        )
        self.layers = nnx.List([Layer(rngs, config, **kwargs) for _ in range(config.depth)])
        self.norm = RMSNorm(rngs, config.width, eps=config.rms_norm_eps, param_dtype=param_dtype)
        self.lm_head = Linear(
            rngs,
            config.width,
            config.vocab_size,
            ("embed", "vocab"),
            bias=False,
            init=initializers.normal(0.02),
            **kwargs,
        )
        self.head_dim, self.rope_theta = config.head_dim, config.rope_theta

    def rope(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rotary tables of [B, T] positions."""
        return rope_tables(positions, head_dim=self.head_dim, theta=self.rope_theta)

    def hidden(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        taps: dict[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        """Runs whole sequences.

        Args:
          x: [B, T, D] input embeddings.
          positions: [B, T] int32.
          mask: [B, T] bool, True for real tokens.
          taps: filled with every layer's output (`llm/layers/{i}`) when given.

        Returns:
          Normalised hidden states [B, T, D], and each layer's keys and values [B, T, K, H].
        """
        rope = self.rope(positions)
        visible = causal_mask(mask)
        keys_values = []
        for i, layer in enumerate(self.layers):
            x, kv = _run_layer(layer, x, rope, visible)
            keys_values.append(kv)
            tap(taps, f"llm/layers/{i}", x)
        return tap(taps, "llm/norm", self.norm(x)), keys_values

    def decode_step(
        self, x: jax.Array, positions: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """One more token for every row.

        Args:
          x: [B, 1, D] input embedding of the new token.
          positions: [B, 1] int32, the token's position within its own row.
          cache: where the token is written, at slot `cache.length`.

        Returns:
          Normalised hidden state [B, 1, D] and the grown cache.
        """
        valid = write_slot(cache.valid, jnp.ones((x.shape[0], 1), bool), cache.length)
        return self._with_cache(x, positions, valid, valid[:, None], cache)

    def extend(
        self, x: jax.Array, positions: jax.Array, mask: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """T more tokens for every row, causal among themselves, after all that the cache holds.

        Args:
          x: [B, T, D] input embeddings.
          positions: [B, T] int32.
          mask: [B, T] bool, True for real tokens; the others take slots that nobody looks at.
          cache: the tokens go to the slots `cache.length` to `cache.length + T - 1`, which must
            exist (a write past the end would be moved backwards over real tokens).

        Returns:
          Normalised hidden states [B, T, D] and the grown cache.
        """
        t, slot = x.shape[1], cache.length
        valid = write_slot(cache.valid, mask, slot)
        reach = jnp.arange(valid.shape[1]) <= slot + jnp.arange(t)[:, None]
        return self._with_cache(x, positions, valid, valid[:, None] & reach, cache)

    def _with_cache(
        self,
        x: jax.Array,
        positions: jax.Array,
        valid: jax.Array,
        visible: jax.Array,
        cache: KVCache,
    ) -> tuple[jax.Array, KVCache]:
        rope, slot = self.rope(positions), cache.length
        keys, values = [], []
        for layer, k, v in zip(self.layers, cache.k, cache.v, strict=True):
            x, k, v = _decode_layer(layer, x, rope, visible, k, v, slot)
            keys.append(k)
            values.append(v)
        grown = KVCache(tuple(keys), tuple(values), valid, slot + x.shape[1])
        return self.norm(x), grown

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Text logits [..., V] float32 of normalised states [..., D]."""
        return self.lm_head(hidden).astype(jnp.float32)
