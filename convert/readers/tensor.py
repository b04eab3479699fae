"""Tensors that lie in a file: where they are, and read-only views of them on a memory map."""

import mmap
import os
import stat
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from janus_jax.errors import InputError

_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weight file. Whoever constructs it has checked that it lies in the file.

    Attributes:
        shape: Sizes of the axes; () for a scalar.
        dtype: NumPy dtype of the elements; bfloat16 and float8 are those of ml_dtypes.
        file: The file that holds it, for messages.
        data: Read-only memory map of the whole file, shared by all its tensors.
        offset: Where element [0, ..., 0] begins, in bytes from the start of the file.
        strides: Steps along the axes in bytes; None where the elements lie in C order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    data: mmap.mmap = field(repr=False, compare=False)
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the elements: what a C-ordered copy would take."""
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """A read-only view of the elements, of `shape` and `dtype`.

        Nothing is read until elements are touched, and then into the page cache, which the system
        takes back when memory is short: no anonymous memory is used. The view is unaligned where
        the file is, and strided where the file has strides. The file must not be shortened while
        views of it are in use: the system ends a process that touches pages that are gone.
        """
        if self.nbytes == 0:  # It may begin where the file ends, which NumPy refuses for a buffer.
            empty = np.empty(self.shape, self.dtype)
            empty.flags.writeable = False
            return empty
        return np.ndarray(self.shape, self.dtype, self.data, self.offset, self.strides)


def map_file(path: Path) -> mmap.mmap:
    """Map a regular, non-empty file read-only.

    The size is taken once, here: all later checks are against ``len`` of the map, so that a file
    replaced in the meantime cannot slip other bytes past them.

    Raises:
        InputError: The path is missing, unreadable, no regular file, empty, or a Git LFS pointer.
    """
    try:
        # Opening a FIFO would otherwise wait for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file")
        if status.st_size == 0:
            raise InputError(f"{path} is empty", fix="download it again")
        try:
            data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be mapped: {error}") from None
    finally:
        os.close(descriptor)
    if data[: len(_LFS_POINTER)] == _LFS_POINTER:
        raise InputError(
            f"{path} is a Git LFS pointer, not the weights",
            fix="run `git lfs pull` in its folder, or download the file itself",
        )
    return data
