"""Timing two implementations side by side in one process."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call, which must wait for its own result."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    rounds: int,
    wake: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, list[float]]:
    """Times every run once a round, in turn, so that a slow spell of the machine hits them all.

    Before its turn a side runs once untimed (`wake[name]`, else the run itself): a system short of
    memory takes back pages that have rested for seconds, and the threads of the side before may
    still be spinning. Both would be charged to whoever comes next.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            (wake or runs)[name]()
            found[name].append(seconds(run))
    return found


def summary(values: list[float]) -> dict[str, float]:
    """Median and range, in the unit of the values."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def machine() -> dict[str, Any]:
    """What a figure should be read beside."""
    import jax
    import torch

    return {
        "device": str(jax.devices()[0]),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }
