"""Checksums of arrays where they lie: on any mesh, without a copy to the host.

Neither the file system nor the format that checkpoints are written in notices every flipped bit in
the numbers of a checkpoint. So a checksum of every array is saved beside it and compared after it
is read back. It is computed by the devices from the bits and the position of each element, and the
sum does not depend on the order, so a state saved on one mesh is checked on any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def checksums(arrays: Mapping[str, Any]) -> dict[str, str]:
    """A checksum of each array; waits for them to be computed.

    Any change of a single element changes the checksum, and any other change does but for one
    chance in 2^32.

    Args:
      arrays: by name; of any shape, dtype and sharding.

    Returns:
      By the same names, eight hexadecimal digits.
    """
    sums = jax.device_get(_checksums(dict(arrays)))
    return {name: f"{int(value):08x}" for name, value in sums.items()}


# One program: fake devices on a CPU that wait for one another in several programs at the same time
# can take all threads there are, and then wait for ever.
@jax.jit
def _checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _checksum(array) for name, array in arrays.items()}


@jax.jit  # traced once for all arrays of one shape
def _checksum(x: jax.Array) -> jax.Array:
    """The sum, modulo 2^32, of every element's bits mixed with its position."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    # Eight-byte elements become two words each, in a new last axis.
    words = lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    position, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        place = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position += place * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    # For one position a bijection of the word, so that no change of one element goes unseen.
    return jnp.sum(_mix(words ^ _mix(position + 1)), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words that spreads every bit: the finalizer of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
