"""Safetensors files: which tensors they hold, and where in the file.

The safetensors package gives NumPy arrays of bfloat16 only as copies, and does not say of what file
and byte a tensor is. The format is small enough to read here: eight bytes with the length of the
header, the header (a JSON object of types, shapes and byte ranges), the bytes. As in the package,
the ranges must fill the file without gaps or overlaps. https://github.com/huggingface/safetensors
"""

from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.readers.names import check_tensor_names, listed, shown
from convert.readers.strict_json import parse_object
from convert.readers.tensor import StoredTensor, map_file
from janus_jax.errors import InputError

MAX_HEADER = 8 * 2**20  # Bytes; 1,000 tensors take 100 kB.
MAX_AXES = 32
_AGAIN = "download the file again, from a source you trust"

_DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
        "C64": np.complex64,
    }.items()
}


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Find the tensors of a safetensors file.

    Returns:
        Tensors by key, in the order of the header.

    Raises:
        InputError: The file is truncated or its header hostile: too long, not JSON, a key set
            twice, a type that is not known, or byte ranges that do not fit the shapes or do not
            fill the file exactly. The message names the file, the tensors and the reason.
    """
    path = Path(path)
    data = map_file(path)
    length = int.from_bytes(data[:8], "little")
    start = 8 + length
    if len(data) < 8 or start > len(data):
        raise InputError(f"{path} is truncated, or no safetensors file", fix=_AGAIN)
    if length > MAX_HEADER:
        raise InputError(f"{path}: the header takes {length} bytes", f"at most {MAX_HEADER}")
    header = parse_object(data[8:start], path, "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(f"{path}: __metadata__ is not an object of text", fix=_AGAIN)
    check_tensor_names(header, path)

    problems = {name: problem for name in header if (problem := _problem(header[name]))}
    if problems:
        what = (f"{name}: {problem}" for name, problem in problems.items())
        raise InputError(f"{path}: unusable entries in the header: {listed(what)}", fix=_AGAIN)
    _check_ranges(header, len(data) - start, path)
    return {
        name: StoredTensor(
            tuple(entry["shape"]),
            _DTYPES[entry["dtype"]],
            path,
            data,
            start + entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


def _problem(entry: Any) -> str:
    """What is wrong with an entry of the header by itself; empty when nothing is."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "not an object of dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        return f"unknown dtype {shown(dtype)}"
    if not _are_sizes(shape) or len(shape) > MAX_AXES:
        return f"shape is not a list of at most {MAX_AXES} sizes"
    if not _are_sizes(offsets) or len(offsets) != 2:
        return "data_offsets are not two offsets"
    begin, end = offsets
    if end - begin != prod(shape) * _DTYPES[dtype].itemsize:
        return "data_offsets do not fit the shape"
    return ""


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**48 for v in values)


def _check_ranges(header: dict[str, Any], size: int, file: Path) -> None:
    """The ranges, in order, must follow each other from the first byte to the last."""
    expected = 0
    ranges = sorted((*entry["data_offsets"], name) for name, entry in header.items())
    for begin, end, name in ranges:
        if begin != expected:
            kind = "overlaps the tensor before it" if begin < expected else "leaves a gap before it"
            raise InputError(f"{file}: tensor {shown(name)} {kind}", fix=_AGAIN)
        expected = end
    if expected > size:
        raise InputError(
            f"{file} is truncated: its tensors take {expected} bytes, it holds {size}", fix=_AGAIN
        )
    if expected < size:
        raise InputError(f"{file} has {size - expected} bytes that belong to no tensor", fix=_AGAIN)
