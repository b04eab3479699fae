"""``janus-jax doctor``: whether this machine is fit to run, before a long run finds out."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "warning", "failed"]

_PACKAGES = (
    "janus-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "tokenizers",
    "pillow",
)
_LOW_DISK = 10 * 2**30


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Check this machine: versions, devices, arithmetic, memory, disk, caches.

    janus-jax doctor

    janus-jax doctor --run-dir runs/stage1 --json

    Exits with 1 where something would make results wrong or runs fail; warnings do not count.

    Attributes:
        run_dir: Where runs will be written; its disk is checked too.
        json: Print JSON.
    """

    run_dir: Path = Path("runs")
    json: bool = False


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        status: `failed` makes the command exit with 1.
        text: What was found, and the fix where there is one.
    """

    name: str
    status: Status
    text: str


def run(options: Doctor) -> int:
    """Prints the report.

    Args:
        options: The parsed command line.

    Returns:
        0, or 1 where a check failed.
    """
    checks: dict[str, Callable[[], tuple[Status, str]]] = {
        "python": lambda: ("ok", f"{platform.python_version()} on {platform.platform()}"),
        "packages": _packages,
        "jax release": lambda: jax_release(importlib.metadata.version("jax")),
        "devices": _devices,
        "arithmetic": arithmetic,
        "memory": _memory,
        "disk": lambda: disk(options.run_dir),
        "compile cache": _compile_cache,
        "shipped model": _shipped_model,
    }
    findings = [Finding(name, *_guarded(check)) for name, check in checks.items()]
    if options.json:
        print(json.dumps([dataclasses.asdict(f) for f in findings], ensure_ascii=False))
    else:
        for finding in findings:
            print(f"{finding.status:8s} {finding.name:14s} {finding.text}")
    return int(any(finding.status == "failed" for finding in findings))


def _guarded(check: Callable[[], tuple[Status, str]]) -> tuple[Status, str]:
    try:
        return check()
    except Exception as error:  # the report goes on, and this is what it reports
        return "failed", " ".join(f"{type(error).__name__}: {error}".split())


def _packages() -> tuple[Status, str]:
    return "ok", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)


def jax_release(version: str) -> tuple[Status, str]:
    """Whether a release of jax is known to compute wrong numbers on CPUs (jax issues 39103, 39352).

    Args:
        version: The release.
    """
    if version == "0.10.2":
        return "failed", 'jax 0.10.2 returns wrong numbers on CPUs; pip install "jax==0.10.1"'
    return "ok", f"{version} is not among the releases known to be wrong"


def _devices() -> tuple[Status, str]:
    import jax

    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return "ok", f"{len(devices)} x {jax.default_backend()} ({', '.join(kinds)}){processes}"


def arithmetic() -> tuple[Status, str]:
    """Computes what the broken release gets wrong: the energy of row (i, 0, 0) is i squared."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    index = np.arange(32_769, dtype=np.float32)
    rows = np.stack([index, np.zeros_like(index), np.zeros_like(index)], axis=1)

    def energy(matrix: Any, rows: Any) -> Any:
        return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(rows)

    # Accelerators multiply in bfloat16 unless asked otherwise.
    with jax.default_matmul_precision("highest"):
        found = np.asarray(jax.jit(energy)(np.eye(3, dtype=np.float32), rows))
    wrong = int(np.sum(np.abs(found - index.astype(np.float64) ** 2) > 2e-7 * index**2))
    if wrong:
        return "failed", f"{wrong} of {len(index)} products are wrong; install another jax release"
    return "ok", f"{len(index)} products as they should be"


def _memory() -> tuple[Status, str]:
    import jax

    from janus_jax.host_memory import host_memory

    parts = []
    for device in jax.local_devices()[:1]:
        stats = device.memory_stats() or {}
        if limit := stats.get("bytes_limit"):
            parts.append(f"{limit / 2**30:.0f} GB a device")
    if (host := host_memory()) is not None:
        parts.append(f"{host.free / 2**30:.0f} of {host.total / 2**30:.0f} GB free on the host")
    return ("ok", ", ".join(parts)) if parts else ("warning", "unknown on this system")


def disk(run_dir: Path) -> tuple[Status, str]:
    """Free space where runs are written; the folder need not exist yet.

    Args:
        run_dir: The folder.
    """
    place = run_dir.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return "failed", f"{str(place)!r} is not writable; choose another --run-dir"
    free = shutil.disk_usage(place).free
    text = f"{free / 2**30:.0f} GB free at {str(place)!r}"
    if free < _LOW_DISK:
        return "warning", f"{text}; a checkpoint of a 1B model in training takes 20 GB"
    return "ok", text


def _compile_cache() -> tuple[Status, str]:
    from janus_jax.cache import enable_compile_cache

    directory = enable_compile_cache()
    if directory is None:
        return "warning", "off, so every start compiles again"
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return "ok", f"{size / 2**20:.0f} MB at {str(directory)!r}"


def _shipped_model() -> tuple[Status, str]:
    from janus_jax.checkpoint import load_model

    loaded = load_model("emoji", verify=True)
    return "ok", f"{loaded.name} {loaded.fingerprint}, every tensor as its manifest says"
