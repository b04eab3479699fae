"""Threads for devices that share a processor."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

# XLA runs what does not depend on one another at the same time, collectives too, and a thread that
# waits in one does nothing else. With two threads for two devices one device waits in an
# all-gather, the other in an all-to-all, and XLA aborts after 40 s (docs/LOG.md). So many threads a
# device were enough for every program of ours.
_EACH = 4
_NAME = "PJRT_NPROC"


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; a scheduler may give a part of the host
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def enough_cpu_threads(at_least: int = 1, environ: MutableMapping[str, str] = os.environ) -> None:
    """Has XLA make threads enough that devices sharing a processor never wait for one another.

    Does nothing for one device, or where `PJRT_NPROC` is set. Must run before the first use of a
    device.

    Args:
      at_least: CPU devices that wait for one another, where `JAX_NUM_CPU_DEVICES` or `XLA_FLAGS`
        say no more.
      environ: environment variables to read and to add to.
    """
    devices = max(_asked_for(environ), at_least)
    if devices > 1:
        environ.setdefault(_NAME, str(max(cores(), _EACH * devices)))


def _asked_for(environ: MutableMapping[str, str]) -> int:
    flag = r"--xla_force_host_platform_device_count=(\d+)"
    found = re.findall(flag, environ.get("XLA_FLAGS", ""))
    count = environ.get("JAX_NUM_CPU_DEVICES", "") or (found[-1] if found else "")
    return int(count) if count.isdecimal() else 1
