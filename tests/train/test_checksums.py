"""Checksums of arrays: every bit counts, and no layout does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.sharding import make_mesh
from train.checksums import checksums


def one(array) -> str:
    return checksums({"x": array})["x"]


def mixed(x: int) -> int:
    """MurmurHash3's finalizer, from its definition."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def test_the_sum_is_that_of_its_definition():
    values = np.array([[1.5, -0.0], [np.nan, 7.0]], np.float32)
    words = values.view(np.uint32).reshape(-1).tolist()
    want = sum(mixed(word ^ mixed(place + 1)) for place, word in enumerate(words)) % 2**32
    assert one(values) == f"{want:08x}"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.int8, jnp.uint8])
def test_any_flipped_bit_changes_it(dtype):
    array = np.asarray(jnp.arange(12).reshape(3, 4).astype(dtype))
    found = {one(array)}
    raw = array.tobytes()
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        found.add(one(np.frombuffer(bytes(flipped), array.dtype).reshape(array.shape)))
    assert len(found) == len(raw) * 8 + 1


def test_the_place_of_an_element_counts():
    array = jnp.arange(6.0).reshape(2, 3)
    assert len({one(array), one(array.T), one(array[::-1]), one(array[:, ::-1])}) == 4
    assert len({one(jnp.zeros(n)) for n in range(5)}) == 5


def test_booleans_scalars_and_nan_have_one():
    assert one(jnp.array([True, False])) != one(jnp.array([False, True]))
    assert one(jnp.float32(1)) != one(jnp.float32(2))
    assert one(jnp.array([jnp.nan])) == one(jnp.array([jnp.nan]))


def test_no_layout_changes_it():
    array = jax.random.normal(jax.random.key(0), (16, 8, 4)).astype(jnp.bfloat16)
    want = one(array)
    mesh = make_mesh({"fsdp": 4, "tensor": 2}, jax.devices())
    for axes in (("fsdp",), (None, "tensor"), ("tensor", "fsdp"), (None, None, ("fsdp",)), ()):
        placed = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))
        assert one(placed) == want, axes
