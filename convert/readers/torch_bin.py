"""Files of torch.save, read without torch: which tensors they hold, and where in the file.

Such a file is a zip archive of a pickle, which describes the tensors, and one record of raw bytes
for each storage that tensors share. The pickle is read by `pickles`, which runs nothing, the
archive by `zips`; here every tensor is checked to lie inside its storage. Read are files of
torch 1.6 and later, little-endian; the format before that is refused with advice.
"""

import mmap
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from convert.readers.names import check_tensor_names, listed, shown
from convert.readers.pickles import MAX_BYTES, read_pickle
from convert.readers.tensor import StoredTensor, map_file
from convert.readers.vocabulary import PickledTensor
from convert.readers.zips import Record, read_records
from janus_jax.errors import InputError

MAX_AXES = 32
_MAX_INTEGER = 2**48  # Far above any size, stride or offset, far below what 64 bits could overflow.
# The legacy format begins with a pickled magic number, the one before it was a tar archive.
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_TAR = b"ustar"


def open_torch_bin(path: Path, under: Sequence[str] = ()) -> dict[str, StoredTensor]:
    """Find the tensors of a state dict that torch.save wrote.

    Args:
        path: The file.
        under: Where the file is a dict of several things, as training scripts write, names of the
            entry that holds the state dict, tried in order. What else such a file holds is not
            looked at. A file that is a plain state dict is read as it is.

    Returns:
        Tensors by key, in the order of the file. Parameters are tensors; tensors that share a
        storage (tied, or views) share bytes of the file.

    Raises:
        InputError: The file is truncated, of the legacy format, big-endian, or hostile; or it is
            not a state dict. The message names the file and the reason.
    """
    path = Path(path)
    data = map_file(path)
    if data[: len(_LEGACY)] == _LEGACY or data[257:262] == _TAR:
        raise InputError(
            f"{path} is in the legacy format of torch before 1.6",
            "the zip format",
            "with a torch of your own, and if you trust the file: "
            "torch.save(torch.load(path, weights_only=True), path)",
        )
    if data[:4] != b"PK\3\4":
        raise InputError(f"{path} is no file of torch.save: not a zip archive")
    records = _torch_records(read_records(data, path), path)
    _check_byte_order(records, data, path)
    pickle = _read(records["data.pkl"], data, path, MAX_BYTES)
    tensors = _state_dict(read_pickle(pickle, path), under, path)
    check_tensor_names(tensors, path)
    return {name: _place(name, tensor, records, data, path) for name, tensor in tensors.items()}


def _torch_records(records: dict[str, Record], file: Path) -> dict[str, Record]:
    """Records by their name inside the archive's one folder, after checking what kind it is."""
    folders = {name.partition("/")[0] for name in records}
    if len(folders) != 1:
        raise InputError(f"{file} is no file of torch.save: it has {len(folders)} folders, not 1")
    inner = {name.partition("/")[2]: record for name, record in records.items()}
    if "data.pkl" not in inner:
        raise InputError(f"{file} is no file of torch.save: it lacks data.pkl")
    return inner


def _read(record: Record, data: mmap.mmap, file: Path, limit: int) -> bytes:
    if record.size > limit:
        raise InputError(
            f"{file}: record {shown(record.name)} takes {record.size} bytes",
            f"at most {limit}",
            "get the weights from a source you trust",
        )
    content = data[record.offset : record.offset + record.size]
    # Zero where it was saved under torch.serialization.set_crc32_options(False).
    if record.crc and zlib.crc32(content) != record.crc:
        raise InputError(
            f"{file}: record {shown(record.name)} does not match its checksum",
            fix="download the file again",
        )
    return content


def _check_byte_order(records: dict[str, Record], data: mmap.mmap, file: Path) -> None:
    """Files of torch before 2.1 do not say, and come from little-endian machines."""
    record = records.get("byteorder")
    if record is not None and (order := _read(record, data, file, limit=16)) != b"little":
        raise InputError(
            f"{file}: byte order {shown(order.decode('latin-1'))}",
            "'little'",
            "save it again on a little-endian machine",
        )


def _state_dict(root: Any, under: Sequence[str], file: Path) -> dict[str, PickledTensor]:
    """The dict of tensors in what the pickle describes: the root, or one of its entries."""
    if not isinstance(root, dict):
        raise InputError(f"{file} holds a {type(root).__name__}", "a dict of tensors")
    entry = next((name for name in under if isinstance(root.get(name), dict)), None)
    tensors = root if entry is None else root[entry]
    others = [name for name, value in tensors.items() if not isinstance(value, PickledTensor)]
    if others:
        where = "" if entry is None else f" under {shown(entry)}"
        kinds = [f"{name} ({type(tensors[name]).__name__})" for name in others]
        raise InputError(
            f"{file}: entries{where} that are not tensors: {listed(kinds)}",
            "a state dict" + (f", or one under {', '.join(under)}" if under else ""),
            "save the state dict itself",
        )
    return tensors


def _place(
    name: str, tensor: PickledTensor, records: dict[str, Record], data: mmap.mmap, file: Path
) -> StoredTensor:
    """A tensor in its place in the file, after checking that all its elements are there."""

    def refuse(why: str, fix: str = "download the file again, from a source you trust"):
        return InputError(f"{file}: tensor {shown(name)} {why}", fix=fix)

    storage, itemsize = tensor.storage, tensor.dtype.itemsize
    record = records.get(f"data/{storage.key}")
    if record is None:
        raise refuse(f"is in storage {shown(storage.key)}, which the file lacks")
    if record.size != storage.size * (1 if storage.dtype is None else itemsize):
        raise refuse(f"is in a storage of {record.size} bytes that is said to have another size")
    if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > MAX_AXES:
        raise refuse(
            f"has {len(tensor.shape)} axes and {len(tensor.strides)} strides, at most {MAX_AXES}"
        )
    integers = (tensor.offset, *tensor.shape, *tensor.strides)
    if min(integers) < 0 or max(integers) > _MAX_INTEGER:
        raise refuse("has an offset, size or stride that is negative or beyond 2**48")

    capacity = record.size // itemsize
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((size - 1) * stride for size, stride in steps)
    count = prod(tensor.shape)
    if count == 0:
        return StoredTensor(tensor.shape, tensor.dtype, file, data, record.offset)
    if last >= capacity:
        raise refuse(f"reaches element {last} of a storage of {capacity}")
    if count > capacity:
        raise refuse(
            f"repeats elements: it has {count}, and its storage {capacity}",
            "call .contiguous() on it before saving",
        )
    return StoredTensor(
        tensor.shape,
        tensor.dtype,
        file,
        data,
        record.offset + tensor.offset * itemsize,
        _byte_strides(tensor.shape, tensor.strides, itemsize),
    )


def _byte_strides(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
) -> tuple[int, ...] | None:
    """Strides in bytes; None for C order, whatever is said of axes with one element."""
    in_order = 1
    contiguous = True
    steps = []
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        step = in_order if size == 1 else stride
        contiguous &= step == in_order
        steps.append(step * itemsize)
        in_order *= size
    return None if contiguous else tuple(reversed(steps))
