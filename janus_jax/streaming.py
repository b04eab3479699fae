"""One tensor at a time into an Orbax checkpoint, in blocks.

Orbax keeps a whole tree in memory, several times over, while it saves. Here every leaf is a
`LazyTensor`, and one handler writes them in turn: the memory needed is a few blocks, whatever the
model. While one block is hashed and written, the next one is copied.

Tensors are stored in chunks of about 4 MB, each in pieces of about 128 kB that can be read alone
(256 x 256 in bfloat16), so that a device of a mesh reads little more than its own part.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

CHUNK_BYTES = 2**22
PIECE_BYTES = 2**17
# Blocks below 32 MB come from the heap, which keeps its pages; larger ones are zeroed anew.
_BLOCK_BYTES = 2**24
_BATCH_BYTES = 2**25
_BYTES_IN_FLIGHT = 2**27
_STRIP = 16  # Columns; 8 and 32 are about as good.

Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor that is read when its turn comes.

    Attributes:
      shape: its shape.
      dtype: the dtype to store it in.
      read: gives the whole array, of this shape and any dtype. Where it is large it should be a
        view of memory-mapped data, transposed or not: only blocks of it are ever copied.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads it: it can stand where an array is expected that is used once."""
        del copy
        return np.asarray(self.read(), dtype)

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return self.size * self.dtype.itemsize


class StreamHandler(ocp.type_handlers.NumpyHandler):
    """Writes `LazyTensor`s as Orbax writes NumPy arrays, but one at a time and in blocks."""

    def __init__(self, progress: Progress | None):
        """`progress` is called with the bytes of each block; `digests` fills by Orbax's names."""
        super().__init__(deepcopy_host_arrays=False)
        self.digests: dict[str, str] = {}
        self._progress = progress
        self._turn = asyncio.Lock()
        self._ready: list[tuple[Any, np.ndarray]] = []
        self._writing: deque[tuple[Any, int]] = deque()
        self._error: Exception | None = None

    async def _background_serialize(self, values: Any, infos: Any, args: Any = None) -> None:
        # Orbax passes no name to the writer of one array, and the digest needs one.
        self._names = {id(value): info.name for value, info in zip(values, infos, strict=True)}
        await super()._background_serialize(values, infos, args)
        if self._error is None:
            self._start()
            await self._settle(0)
        else:
            raise self._error

    def _start(self) -> None:
        """Starts all writes that are ready. Those that start together become one version."""
        for target, part in self._ready:
            write = target.write(part, can_reference_source_data_indefinitely=True)
            self._writing.append((write, part.nbytes))
        self._ready.clear()

    async def _settle(self, limit: int) -> None:
        """Waits until at most `limit` bytes are being written."""
        while sum(size for _, size in self._writing) > limit:
            write, _ = self._writing.popleft()
            await write

    async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: Any) -> None:
        # Orbax makes a chunk one piece, which is read whole. Cut finer, it can be read in part.
        chunk = tspec["metadata"]["codecs"][0]["configuration"]
        chunk["chunk_shape"] = _piece(chunk["chunk_shape"], value.dtype.itemsize)
        # All are opened at once and written in turn. Every write that is waited for alone becomes a
        # version of the database with an index of its own: a small model took twice its size.
        store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
        async with self._turn:
            # Orbax would leave those that wait here behind when one fails, so all are seen off.
            if self._error is None:
                try:
                    await self._write(self._names[id(value)], value, store)
                except Exception as error:
                    self._error = error

    async def _write(self, name: str, value: LazyTensor, store: Any) -> None:
        array = value.read()
        if array.shape != value.shape:
            raise ValueError(f"{name} is {array.shape}, not {value.shape}")
        digest = hashlib.sha256()
        hashing = None
        for rows in _row_blocks(value, store.chunk_layout.write_chunk.shape):
            part = await asyncio.to_thread(
                copy_in_order, array if rows is None else array[rows], value.dtype
            )
            if hashing is not None:
                await hashing
            # While this block is hashed and written, the next one is copied.
            view = part.reshape(-1).view(np.uint8).data
            hashing = asyncio.create_task(asyncio.to_thread(digest.update, view))
            target = store if rows is None else store[rows]
            self._ready.append((target, part))
            if sum(waiting.nbytes for _, waiting in self._ready) >= _BATCH_BYTES:
                self._start()
                await self._settle(_BYTES_IN_FLIGHT)
            if self._progress is not None:
                self._progress(part.nbytes)
        if hashing is not None:
            await hashing
        self.digests[name] = digest.hexdigest()


def _piece(chunk: Sequence[int], itemsize: int) -> list[int]:
    """Halves the longest axis until no more than `PIECE_BYTES` are left."""
    piece = list(chunk)
    while math.prod(piece) * itemsize > PIECE_BYTES and any(n % 2 == 0 for n in piece):
        axis = max((n, i) for i, n in enumerate(piece) if n % 2 == 0)[1]
        piece[axis] //= 2
    return piece


def copy_in_order(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy in C order, of this dtype.

    A transposed matrix is copied in strips of columns. NumPy goes along the rows of the copy, where
    each element comes from another cache line: a seventh of the speed in bfloat16.
    """
    if array.ndim != 2 or abs(array.strides[0]) >= abs(array.strides[1]):
        return np.array(array, dtype, order="C")
    copy = np.empty(array.shape, dtype)
    source, target = array, copy
    if array.dtype == dtype:  # Bits are copied faster than the numbers of ml_dtypes.
        bits = f"u{dtype.itemsize}"
        source, target = array.view(bits), copy.view(bits)
    for start in range(0, array.shape[1], _STRIP):
        target[:, start : start + _STRIP] = source[:, start : start + _STRIP]
    return copy


def _row_blocks(value: LazyTensor, chunk: Any) -> list[slice | None]:
    """Cuts the first axis into blocks of whole chunks, so that no chunk is written twice."""
    if not value.shape:
        return [None]
    row_bytes = max(value.nbytes // value.shape[0], 1)
    step = chunk[0] if chunk else 1
    rows = max(_BLOCK_BYTES // row_bytes // step, 1) * step
    return [slice(i, min(i + rows, value.shape[0])) for i in range(0, value.shape[0], rows)]
