"""Directories that appear whole or not at all.

What is being written lies in a hidden directory beside its destination, locked by the process that
writes it, and takes its place by a rename. What a killed process leaves behind is found and removed
by the next one; a directory that was being replaced when it was killed is put back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from janus_jax.errors import InputError

_SUFFIX = ".writing"


@contextlib.contextmanager
def new_directory(
    path: str | Path, *, what: str, replaceable: Callable[[Path], bool], needed: int = 0
) -> Iterator[Path]:
    """Gives an empty directory to fill, which becomes `path` when the block ends without an error.

    Args:
      path: the destination: nothing, an empty directory, or something `replaceable`.
      what: what the destination should hold, for messages ("a Janus-JAX model").
      replaceable: whether a directory that is there may be replaced.
      needed: bytes that will be written; refused beforehand where the disk has less room.

    Yields:
      A directory on the same file system.

    Raises:
      InputError: the destination holds something else or cannot be written, or the disk is full.
    """
    target = Path(path).absolute()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{str(target)!r} is no directory", "a new or empty directory")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    if target.exists() and any(target.iterdir()) and not replaceable(target):
        raise InputError(
            f"{str(target)!r} holds something that is not {what}",
            "a new or empty directory, or one to replace",
        )
    _check_room(target, needed)
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_SUFFIX, dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    lock = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = work / "new"
        new.mkdir()
        yield new
        _sync(new)
        if target.exists():
            target.rename(work / "old")
        new.rename(target)
        _sync_directory(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    except ValueError as error:
        # TensorStore, which writes the parameters, tells the system's errors in words only.
        if found := re.search(r": ([^:]+) \[os_error_code=", str(error)):
            raise _unwritable(target, OSError(found[1])) from error
        raise
    finally:
        _put_back(work, target)
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def free_bytes(path: Path) -> int:
    """Free bytes of the file system that holds `path`, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _check_room(target: Path, needed: int) -> None:
    free = free_bytes(target.parent)
    if needed > free:
        raise InputError(
            f"{str(target)!r} takes {needed / 1e9:.2f} GB; its disk has {free / 1e9:.2f} GB free",
            fix="make room, or choose another destination",
        )


def _clean(target: Path) -> None:
    """Removes what killed writers of this destination left; those still alive hold their lock."""
    for work in _working_directories(target):
        lock = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{str(target)!r} is being written by another process", fix="wait for it to end"
            ) from error
        else:
            _put_back(work, target)
            shutil.rmtree(work)
        finally:
            os.close(lock)


def _working_directories(target: Path) -> list[Path]:
    # Compared as text, for a name may hold characters that mean something in a pattern. No letters
    # of tempfile's are dots, so that `a` does not take the directories of `a.b` for its own.
    prefix = f".{target.name}."
    return [
        path
        for path in target.parent.iterdir()
        if path.name.startswith(prefix)
        and path.name.endswith(_SUFFIX)
        and "." not in path.name[len(prefix) : -len(_SUFFIX)]
    ]


def _put_back(work: Path, target: Path) -> None:
    if (work / "old").exists() and not target.exists():
        (work / "old").rename(target)


def _sync(directory: Path) -> None:
    """Brings everything to the disk: a rename that survives a power cut must not lead to holes."""
    for folder, _, files in os.walk(directory):
        for name in files:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_directory(Path(folder))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(
        f"{str(target)!r} cannot be written ({error.strerror or error})",
        fix="choose another directory",
    )
