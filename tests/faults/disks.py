"""Disks that are small, full or read-only, for real."""

import contextlib
import ctypes
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path


class Disk:
    """A directory on a small file system of its own, where this process may mount one.

    Elsewhere, as in Docker, it is an ordinary directory: it is then "full" by a limit on the size
    of files, and read-only by its permissions, which bind root too once it gives up that right.

    Attributes:
      path: the directory.
      mounted: whether it is a file system of its own.
      reason: what the system says when the disk is full.
    """

    def __init__(self, path: Path, megabytes: int):
        self.path = path
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
        self.mounted = os.geteuid() == 0 and _succeeds(*command)
        self.reason = "No space left on device" if self.mounted else "File too large"

    def fill(self, leave: int = 0, process: int = 0) -> None:
        """Leaves so many bytes free; where it is no disk, for one process (0: this one)."""
        if self.mounted:
            free = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_bsize
            (self.path / "filler").write_bytes(b"x" * (free - leave))
        else:
            _limit_files(max(leave, 4096), process)

    def clear(self) -> None:
        """Undoes `fill`."""
        if self.mounted:
            (self.path / "filler").unlink(missing_ok=True)
        else:
            _limit_files(None)

    def set_writable(self, writable: bool) -> None:
        """Makes everything on it read-only, or writable again."""
        if self.mounted:
            how = "remount,rw" if writable else "remount,ro"
            assert _succeeds("mount", "-o", how, str(self.path))
        else:
            bind_by_permissions(not writable)
            for folder, _, _ in os.walk(self.path):
                os.chmod(folder, 0o755 if writable else 0o555)

    def close(self) -> None:
        """Takes it away."""
        self.set_writable(True)
        self.clear()
        if self.mounted:
            assert _succeeds("umount", "-l", str(self.path))


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Disk]:
    """A disk of so many megabytes at a new path."""
    disk = Disk(path, megabytes)
    try:
        yield disk
    finally:
        disk.close()


def bind_by_permissions(bound: bool = True) -> None:
    """Has files' permissions bind this thread, and those it starts, where it is root's; or not."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface; this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their upper halves
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    override = 1 << 1  # CAP_DAC_OVERRIDE
    sets[0] = sets[0] & ~override if bound else sets[0] | (sets[1] & override)
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def _limit_files(size: int | None, process: int = 0) -> None:
    # Python ignores SIGXFSZ, so a write fails with EFBIG instead.
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limits = (hard if size is None else size, hard)
    resource.prlimit(process, resource.RLIMIT_FSIZE, limits)
