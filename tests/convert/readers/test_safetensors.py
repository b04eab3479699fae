"""Safetensors files: those the package writes are read, forged ones refused by their reason."""

import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from convert.readers.safetensors import MAX_HEADER, open_safetensors
from janus_jax.errors import InputError
from tests.convert.readers.forge import entry, safetensors_of

DTYPES = [
    np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8,
    np.uint64, np.uint32, np.uint16, np.uint8, np.bool_,
]  # fmt: skip


def test_what_the_package_writes_is_read(tmp_path: Path):
    rng = np.random.default_rng(0)
    arrays = {
        np.dtype(dtype).name: rng.integers(0, 2, (3, 5)).astype(dtype)
        for dtype in DTYPES
        if dtype is not ml_dtypes.bfloat16
    }
    arrays |= {"scalar": np.array(7, np.float32), "empty": np.zeros((0, 4), np.float32)}
    save_file(arrays, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = open_safetensors(tmp_path / "m.safetensors")
    assert found.keys() == arrays.keys()
    for key, stored in found.items():
        assert (stored.shape, stored.dtype) == (arrays[key].shape, arrays[key].dtype)
        np.testing.assert_array_equal(stored.read(), arrays[key])
        assert not stored.read().flags.writeable


def test_bfloat16_is_read_without_torch(tmp_path: Path):
    tensor = torch.randn(4, 3, dtype=torch.bfloat16)
    save_torch({"w": tensor}, tmp_path / "m.safetensors")
    found = open_safetensors(tmp_path / "m.safetensors")["w"].read()
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), tensor.float().numpy())


TWO = {"a": entry(), "b": entry(offsets=(24, 48))}
ATTACKS = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"1234567", "truncated"),
    "a header longer than the file": (struct.pack("<Q", 100) + b"{}", "truncated"),
    "a header of 2**63": (struct.pack("<Q", 2**63) + b"{}", "truncated"),
    "a huge header": (
        safetensors_of(b"{" + b" " * MAX_HEADER + b"}"),
        f"takes {MAX_HEADER + 2} bytes; allowed: at most {MAX_HEADER}",
    ),
    "not JSON": (safetensors_of(b"{'a': 1}"), "JSON"),
    "not UTF-8": (safetensors_of(b'{"\xff": 1}'), "UTF-8|JSON"),
    "a list": (safetensors_of(b"[]"), "object"),
    "nested deeply": (safetensors_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "deep|JSON"),
    "a key twice": (
        safetensors_of(
            b'{"a":%b,"a":%b}' % ((b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',) * 2),
            bytes(4),
        ),
        "twice",
    ),
    "NaN": (safetensors_of(b'{"a":NaN}'), "JSON|NaN"),
    "metadata of numbers": (safetensors_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "an entry that is text": (safetensors_of({"a": "b"}), "a: not an object"),
    "an unknown field": (safetensors_of({"a": {**entry(), "x": 1}}, bytes(24)), "not an object"),
    "an unknown dtype": (safetensors_of({"a": entry("F128")}, bytes(24)), "unknown dtype"),
    "a dtype that is a list": (safetensors_of({"a": entry(["F32"])}, bytes(24)), "unknown dtype"),
    "a negative size": (safetensors_of({"a": entry(shape=(-2, -3))}, bytes(24)), "not a list of"),
    "a fraction": (safetensors_of({"a": entry(shape=(2.0, 3))}, bytes(24)), "not a list of"),
    "true as a size": (safetensors_of({"a": entry(shape=(True, 6))}, bytes(24)), "not a list of"),
    "33 axes": (
        safetensors_of({"a": entry(shape=(1,) * 33, offsets=(0, 4))}, bytes(4)),
        "at most 32",
    ),
    "a size that overflows": (
        safetensors_of({"a": entry(shape=(2**40, 2**40), offsets=(0, 24))}, bytes(24)),
        "do not fit the shape",
    ),
    "three offsets": (safetensors_of({"a": entry(offsets=(0, 12, 24))}, bytes(24)), "two offsets"),
    "backwards": (safetensors_of({"a": entry(offsets=(24, 0))}, bytes(24)), "do not fit"),
    "negative offsets": (safetensors_of({"a": entry(offsets=(-24, 0))}, bytes(24)), "two offsets"),
    "overlapping": (
        safetensors_of({"a": entry(), "b": entry(offsets=(12, 36))}, bytes(36)),
        "overlaps the tensor before it",
    ),
    "the same bytes": (safetensors_of({"a": entry(), "b": entry()}, bytes(24)), "overlaps"),
    "a gap": (
        safetensors_of({"a": entry(), "b": entry(offsets=(28, 52))}, bytes(52)),
        "leaves a gap before it",
    ),
    "a gap at the start": (safetensors_of({"a": entry(offsets=(4, 28))}, bytes(28)), "gap"),
    "truncated": (safetensors_of(TWO, bytes(47)), "takes? 48 bytes, it holds 47"),
    "bytes of no tensor": (safetensors_of(TWO, bytes(49)), "1 bytes that belong to no tensor"),
    "a key with a newline": (safetensors_of({"a\nb": entry()}, bytes(24)), "name"),
    "a git lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "Git LFS pointer",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused(attack: str, tmp_path: Path):
    content, reason = ATTACKS[attack]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        open_safetensors(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("kind", ["directory", "missing"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path):
    path = tmp_path / "m.safetensors"
    if kind == "directory":
        path.mkdir()
    with pytest.raises(InputError, match=r"not a regular file|cannot be opened"):
        open_safetensors(path)
