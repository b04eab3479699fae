"""The key and value cache of incremental decoding.

Dims: B batch, S slots, T new tokens, K key heads, H head width, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, each layer its own array so that each is updated in place.

    Rows of a batch are padded on the left, so every row writes the same slot. Heads stand before
    slots: what one head reads in a step then lies together, and a CPU need not turn the whole
    cache around first (measured: 4 to 10 times slower, docs/LOG.md).

    Attributes:
      k: L arrays [B, K, S, H].
      v: L arrays [B, K, S, H].
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
        short = slots - t
        return cls(
            k=tuple(_pad_slots(heads_first(k), short) for k, _ in keys_values),
            v=tuple(_pad_slots(heads_first(v), short) for _, v in keys_values),
            valid=_pad_slots(valid, short),
            length=jnp.asarray(t, jnp.int32),
        )

    @classmethod
    def empty(
        cls, layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: Any
    ) -> KVCache:
        """A cache of `slots` slots with nothing in it."""

        def zeros() -> tuple[jax.Array, ...]:
            return tuple(
                jnp.zeros((batch, kv_heads, slots, head_dim), dtype) for _ in range(layers)
            )

        return cls(zeros(), zeros(), jnp.zeros((batch, slots), bool), jnp.int32(0))

    def grow(self, slots: int) -> KVCache:
        """The same contents with `slots` slots, at least as many as before."""
        more = slots - self.valid.shape[1]
        return KVCache(
            tuple(_pad_slots(k, more) for k in self.k),
            tuple(_pad_slots(v, more) for v in self.v),
            _pad_slots(self.valid, more),
            self.length,
        )

    def rewind(self, length: jax.Array) -> KVCache:
        """Forgets every slot from `length` (int32 scalar) on."""
        kept = self.valid & (jnp.arange(self.valid.shape[1]) < length)
        return KVCache(self.k, self.v, kept, length)


def heads_first(new: jax.Array) -> jax.Array:
    """Keys or values as layers make them, [B, T, K, H], in the order of the cache, [B, K, T, H]."""
    return jnp.swapaxes(new, 1, 2)


def whole_slots(needed: int) -> int:
    """The slots to make for at least `needed`: a multiple of 16.

    In this number the order of the dimensions is also the order in which a TPU lays out an array
    of 16 or 32 bits, so that no program turns the caches around when it is called.
    """
    return -(-needed // 16) * 16


def row_major(buffer: jax.Array) -> jax.Array:
    """The same array, laid out in memory in the order of its dimensions.

    The TPU compiler would else lay out the caches of a loop with slots outermost, at the price of
    a copy of each before and after the loop, and for some numbers of rows one in every turn. Over a
    mesh nothing is asked: XLA cannot split the request and would gather whole caches at each step.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        return buffer
    return with_layout_constraint(buffer, Layout(major_to_minor=tuple(range(buffer.ndim))))


def write_slot(buffer: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
    """Writes `new` at `slot` of `buffer` and the slots after it (in place when donated).

    Args:
      buffer: a cache [B, K, S, H], or flags of its slots [B, S].
      new: the same shape but for fewer slots.
      slot: int32 scalar.
    """
    start = [jnp.zeros_like(slot)] * buffer.ndim
    start[_slots_axis(buffer)] = slot
    return lax.dynamic_update_slice(buffer, new.astype(buffer.dtype), start)


def _pad_slots(buffer: jax.Array, more: int) -> jax.Array:
    pad = [(0, 0)] * buffer.ndim
    pad[_slots_axis(buffer)] = (0, more)
    return jnp.pad(buffer, pad)


def _slots_axis(buffer: jax.Array) -> int:
    return 2 if buffer.ndim == 4 else 1
