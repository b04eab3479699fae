"""The key and value cache as literal arrays."""

import jax
import jax.numpy as jnp
import pytest

from janus_jax.nn.cache import KVCache, heads_first, row_major, whole_slots, write_slot


def cache() -> KVCache:
    k = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    valid = jnp.array([[True, True], [False, True]])
    return KVCache.from_prefill([(k, 10 * k), (k + 1, k + 2)], valid, slots=4)


def test_prefill_fills_the_first_slots():
    c = cache()
    assert len(c.k) == len(c.v) == 2
    assert c.k[0][:, 0, :, 0].tolist() == [[1, 2, 0, 0], [3, 4, 0, 0]]
    assert c.v[0][:, 0, :, 0].tolist() == [[10, 20, 0, 0], [30, 40, 0, 0]]
    assert c.k[1][:, 0, :, 0].tolist() == [[2, 3, 0, 0], [4, 5, 0, 0]]
    assert c.valid.astype(int).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0]]
    assert int(c.length) == 2 and c.length.dtype == jnp.int32


def test_a_prompt_longer_than_the_cache_is_refused():
    k = jnp.zeros((1, 3, 1, 1))
    with pytest.raises(ValueError, match="2 slots cannot hold a prompt of 3 tokens"):
        KVCache.from_prefill([(k, k)], jnp.ones((1, 3), bool), slots=2)


def test_write_slot_writes_one_slot_of_every_row():
    buffer = jnp.zeros((2, 1, 3, 2), jnp.bfloat16)
    new = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 1, 1, 2)
    out = write_slot(buffer, new, jnp.asarray(1, jnp.int32))
    assert out.dtype == jnp.bfloat16
    assert out[:, 0].tolist() == [[[0, 0], [1, 2], [0, 0]], [[0, 0], [3, 4], [0, 0]]]
    flags = write_slot(jnp.zeros((2, 3), bool), jnp.ones((2, 1), bool), jnp.asarray(2, jnp.int32))
    assert flags.astype(int).tolist() == [[0, 0, 1], [0, 0, 1]]


def test_heads_stand_before_slots():
    made = jnp.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)  # B, T, K, H
    cached = KVCache.from_prefill([(made, made)], jnp.ones((2, 3), bool), slots=6).k[0]
    assert cached.shape == (2, 4, 6, 5)
    assert cached[1, 2, 1].tolist() == made[1, 1, 2].tolist()
    assert heads_first(made).tolist() == cached[:, :, :3].tolist()
    empty = KVCache.empty(1, 2, 6, 4, 5, jnp.float32).k[0]
    assert empty.shape == cached.shape
    grown = KVCache((cached,), (cached,), jnp.ones((2, 6), bool), jnp.int32(3)).grow(8)
    assert grown.k[0].shape == (2, 4, 8, 5) and grown.valid.shape == (2, 8)
    assert grown.v[0][:, :, :6].tolist() == cached.tolist() and not grown.k[0][:, :, 6:].any()
    assert jax.jit(row_major)(cached).tolist() == cached.tolist()


def test_slots_come_in_whole_tiles():
    assert [whole_slots(n) for n in (1, 16, 17, 607, 608)] == [16, 16, 32, 608, 608]


def test_it_is_a_pytree():
    leaves = jax.tree.leaves(cache())
    assert len(leaves) == 6
    assert int(jax.jit(lambda c: c.length + 1)(cache())) == 3
