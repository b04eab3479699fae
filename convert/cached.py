"""PyTorch checkpoints named as a `--model`: converted once, into the user's cache."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from convert.hub import fetch, is_id
from convert.pipeline import convert
from convert.source import open_source
from janus_jax import __version__
from janus_jax.cache import cache_root
from janus_jax.errors import InputError
from janus_jax.locate import is_model


def cached_model(name: str) -> Path:
    """The model directory converted from a checkpoint, made on the first call.

    A Hugging Face id is known by the commit its revision stands for, a directory by the names,
    sizes and times of its files: either changed, it is converted anew. Weights keep the dtype they
    are stored in. Delete `models` in the cache folder (`janus_jax.cache.cache_root`) to get the
    space back.

    Args:
      name: a directory in DeepSeek's or transformers' layout, or a Hugging Face id with optional
        `@revision`.

    Raises:
      InputError: no such checkpoint, one that cannot be converted, or no room in the cache.
    """
    directory, identity = Path(name).expanduser(), ""
    if not directory.exists() and is_id(name):
        snapshot = fetch(name)
        directory = snapshot.path
        identity = f"{name.partition('@')[0]}@{snapshot.revision}"
        name = identity
    label = identity.replace("/", "--") or directory.absolute().name
    key = f"{__version__}\n{identity or _state(directory)}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    target = cache_root() / "models" / f"{label.partition('@')[0]}-{digest}"
    if is_model(target):
        return target
    with _alone(name):
        if is_model(target):
            return target
        source = open_source(name)
        size = sum(tensor.nbytes for tensor in source.params.values())
        print(f"converting {name} once ({size / 1e9:.2g} GB) into {target}", file=sys.stderr)
        for note in source.notes:
            print(note, file=sys.stderr)
        convert(source, target)
    return target


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Waits until no other process converts into this cache: those of one run all begin at once."""
    try:
        cache_root().mkdir(parents=True, exist_ok=True)
        lock = (cache_root() / ".converting").open("a")
    except OSError as error:
        raise InputError(
            f"the cache {str(cache_root())!r} cannot be written ({error.strerror})",
            fix="set JANUS_JAX_CACHE_DIR to a writable directory",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process to convert {name}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _state(directory: Path) -> str:
    """What changes when a file of the directory does."""
    lines = [str(directory.resolve())]
    for path in sorted(directory.iterdir()):
        if path.is_file():
            status = path.stat()
            lines.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(lines)
