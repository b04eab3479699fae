"""Safetensors files written tensor by tensor, in shards whose content is decided beforehand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.manifest import entry

Progress = Callable[[int], None]

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_BLOCK_BYTES = 2**26


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a tensor that is to be written."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize


def shards_of(specs: Mapping[str, Spec], max_bytes: int) -> list[dict[str, Spec]]:
    """Cuts tensors, in their order, into shards; a tensor larger than a shard gets its own."""
    shards: list[dict[str, Spec]] = [{}]
    size = 0
    for key, spec in specs.items():
        if shards[-1] and size + spec.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = spec
        size += spec.nbytes
    return shards


def write_shards(
    directory: Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    max_bytes: int,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Writes `model.safetensors`, or shards with their index, as transformers names them.

    Args:
      directory: gets the files.
      specs: of every tensor, in the order in which they come.
      tensors: `(key, array)` in that order; arrays are cast to the dtype of their spec in blocks.
      max_bytes: most bytes of tensors in a file.
      progress: called with the bytes of each block that was written.

    Returns:
      For each key its `shape`, `dtype` and `sha256`, as manifests have them.
    """
    shards = shards_of(specs, max_bytes)
    names = [_shard_name(i, len(shards)) for i in range(len(shards))]
    stream = iter(tensors)
    entries: dict[str, dict[str, Any]] = {}
    for name, shard in zip(names, shards, strict=True):
        with (directory / name).open("wb") as file:
            file.write(_header(shard))
            for key, spec in shard.items():
                found, array = next(stream)
                if found != key or array.shape != spec.shape:
                    raise ValueError(f"{found} {array.shape} came instead of {key} {spec.shape}")
                digest = hashlib.sha256()
                for block in _blocks(array, spec.dtype):
                    digest.update(block)
                    file.write(block)
                    if progress is not None:
                        progress(len(block))
                entries[key] = entry(spec.shape, spec.dtype, digest.hexdigest())
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(spec.nbytes for spec in specs.values())},
            "weight_map": {key: n for n, shard in zip(names, shards, strict=True) for key in shard},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return entries


def _shard_name(index: int, count: int) -> str:
    return (
        "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
    )


def _header(shard: Mapping[str, Spec]) -> bytes:
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, spec in shard.items():
        content[key] = {
            "dtype": _NAMES[spec.dtype.name],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    return len(text).to_bytes(8, "little") + text


def _blocks(array: np.ndarray, dtype: np.dtype) -> Iterable[memoryview]:
    """The elements in C order and little-endian, a few rows at a time."""
    if array.ndim == 0:
        array = array.reshape(1)
    rows = max(_BLOCK_BYTES // max(array[:1].nbytes, 1), 1)
    for start in range(0, array.shape[0], rows):
        block = np.ascontiguousarray(array[start : start + rows], dtype=dtype)
        yield block.reshape(-1).view(np.uint8).data
