"""The key and value cache of incremental decoding.

Dims: B batch, S slots, T new tokens, K key heads, H head width, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, each layer its own array so that each is updated in place.

    Rows of a batch are padded on the left, so every row writes the same slot.

    Attributes:
      k: L arrays [B, S, K, H].
      v: L arrays [B, S, K, H].
      valid: [B, S] bool, True where a slot holds a real token.
      length: int32 scalar, slots written so far; the next token goes to this slot.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    valid: jax.Array
    length: jax.Array

    @classmethod
    def from_prefill(
        cls, keys_values: list[tuple[jax.Array, jax.Array]], valid: jax.Array, slots: int
    ) -> KVCache:
        """Pads the keys and values of a prompt to `slots` slots.

        Args:
          keys_values: for each layer, keys and values [B, T, K, H].
          valid: [B, T] bool.
          slots: S, at least T.

        Raises:
          ValueError: `slots` is smaller than T.
        """
        t = valid.shape[1]
        if slots < t:
            raise ValueError(f"a cache of {slots} slots cannot hold a prompt of {t} tokens")
        pad = ((0, 0), (0, slots - t), (0, 0), (0, 0))
        return cls(
            k=tuple(jnp.pad(k, pad) for k, _ in keys_values),
            v=tuple(jnp.pad(v, pad) for _, v in keys_values),
            valid=jnp.pad(valid, pad[:2]),
            length=jnp.asarray(t, jnp.int32),
        )

    @classmethod
    def empty(
        cls, layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: Any
    ) -> KVCache:
        """A cache of `slots` slots with nothing in it."""

        def zeros() -> tuple[jax.Array, ...]:
            return tuple(
                jnp.zeros((batch, slots, kv_heads, head_dim), dtype) for _ in range(layers)
            )

        return cls(zeros(), zeros(), jnp.zeros((batch, slots), bool), jnp.int32(0))

    def grow(self, slots: int) -> KVCache:
        """The same contents with `slots` slots, at least as many as before."""
        more = slots - self.valid.shape[1]
        pad = ((0, 0), (0, more), (0, 0), (0, 0))
        return KVCache(
            tuple(jnp.pad(k, pad) for k in self.k),
            tuple(jnp.pad(v, pad) for v in self.v),
            jnp.pad(self.valid, pad[:2]),
            self.length,
        )

    def rewind(self, length: jax.Array) -> KVCache:
        """Forgets every slot from `length` (int32 scalar) on."""
        kept = self.valid & (jnp.arange(self.valid.shape[1]) < length)
        return KVCache(self.k, self.v, kept, length)

    def repeat(self, n: int) -> KVCache:
        """Repeats every row n times, row by row (b0 b0 b1 b1 ...): one prompt, n images."""

        def rows(x: Any) -> jax.Array:
            return jnp.repeat(x, n, axis=0)

        return KVCache(
            tuple(map(rows, self.k)), tuple(map(rows, self.v)), rows(self.valid), self.length
        )


def write_slot(buffer: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
    """Writes `new` [B, T, ...] at `slot` of `buffer` [B, S, ...] (in place when donated)."""
    start = (jnp.zeros_like(slot), slot) + (jnp.zeros_like(slot),) * (buffer.ndim - 2)
    return lax.dynamic_update_slice(buffer, new.astype(buffer.dtype), start)
