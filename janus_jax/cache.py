"""The compiled-program cache on disk: why a second command starts in seconds.

XLA compiles each program once per shape. The command line keeps the results in the user's cache
folder, so only the first call on a machine pays. A library has no business changing global settings
on import, so nothing here runs unless it is called.
"""

import hashlib
import importlib.metadata
import os
import platform
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

OFF_WORDS = ("0", "off", "none")


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the folder for what can be made again: compiled programs, converted weights.

    In order: ``JANUS_JAX_CACHE_DIR``, ``XDG_CACHE_HOME/janus-jax``, the system's usual place.

    Args:
        environ: Environment variables to read.

    Returns:
        An absolute path, which may not exist yet.
    """
    if chosen := environ.get("JANUS_JAX_CACHE_DIR"):
        return Path(chosen).expanduser().absolute()
    if xdg := environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "janus-jax"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "janus-jax"
    return Path.home() / ".cache" / "janus-jax"


def enable_compile_cache(directory: str | os.PathLike[str] | None = None) -> Path | None:
    """Turns on JAX's persistent compilation cache for this process.

    Every program is kept, however quickly it compiled: a decode step is many small ones. A cache
    already chosen through ``JAX_COMPILATION_CACHE_DIR`` or ``jax.config`` is left alone, and
    ``JANUS_JAX_COMPILE_CACHE=off`` turns this off. Must run before the first compilation.

    Args:
        directory: Where to keep compiled programs; by default a folder under `cache_root` for this
            version of jaxlib and this kind of processor.

    Returns:
        The folder in use, or None where there is no cache: turned off, or not writable (which
        warns, because every start will be slow).
    """
    if os.environ.get("JANUS_JAX_COMPILE_CACHE", "").lower() in OFF_WORDS:
        return None
    import jax

    if chosen := getattr(jax.config, "jax_compilation_cache_dir", None):
        return Path(chosen)
    target = Path(directory) if directory is not None else cache_root() / "xla" / _machine_tag()
    try:
        target.mkdir(parents=True, exist_ok=True)
        writable = os.access(target, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        warnings.warn(
            f"cannot write compiled programs to {target}, so every start compiles again; "
            "set JANUS_JAX_CACHE_DIR to a writable folder",
            stacklevel=2,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(target))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return target


def _machine_tag() -> str:
    # Programs compiled for the CPU use its vector instructions. A home folder shared by unlike
    # machines must not hand one machine's programs to another, hence the processor's feature list.
    features = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("flags", "Features", "model name")):
                features += line
                if line.startswith(("flags", "Features")):
                    break
    except OSError:
        features += platform.processor()
    digest = hashlib.sha256(features.encode()).hexdigest()[:8]
    return f"jaxlib-{importlib.metadata.version('jaxlib')}-{digest}"
