"""How much of the host's memory a process can still take: the system's figure, or its container's.

A container, a SLURM job or a systemd unit is a control group with a limit of its own. The system's
`MemAvailable` knows nothing of it, and who goes beyond it is killed without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HostMemory:
    """Memory of this host, in bytes.

    Attributes:
      free: what this process can still take; files that the kernel keeps at hand count as free.
      total: the host's memory, or the least limit that this process is under.
    """

    free: int
    total: int


def host_memory(
    proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")
) -> HostMemory | None:
    """Reads it; None on a system that is no Linux.

    Args:
      proc: where the kernel's files on processes are.
      groups: where control groups are mounted, of version 2 or 1.
    """
    try:
        system = _fields((proc / "meminfo").read_text().replace(":", ""))
        free, total = (1024 * system[name] for name in ("MemAvailable", "MemTotal"))
    except (OSError, ValueError, LookupError):
        return None
    for group in _limits(proc, groups):
        free, total = min(free, group.free), min(total, group.total)
    return HostMemory(max(free, 0), total)


def _limits(proc: Path, groups: Path) -> Iterator[HostMemory]:
    """What is left under each limit: those of this process's control group and all above it."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            top, limit, usage, prefix = groups, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            top, prefix = groups / "memory", "total_"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = top / path.lstrip("/")
        for group in (own, *own.parents):
            try:
                most = int((group / limit).read_text())
                used = int((group / usage).read_text())
                kept = _fields((group / "memory.stat").read_text())
                files = sum(kept[f"{prefix}{state}_file"] for state in ("active", "inactive"))
            except (OSError, ValueError, LookupError):
                continue  # no limit ("max"), or a group that is not visible from in here
            yield HostMemory(most - used + files, most)


def _fields(text: str) -> dict[str, int]:
    """Lines of a name, a number and perhaps a unit."""
    return {words[0]: int(words[1]) for words in map(str.split, text.splitlines())}
