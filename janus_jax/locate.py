"""Which model directory a name or path stands for.

Free of JAX, so that the command line can refuse a misspelt name before anything heavy loads.
"""

from __future__ import annotations

import re
from pathlib import Path

from janus_jax.config import NAMED
from janus_jax.errors import InputError

SHIPPED = ("emoji",)

# `pathlib` makes gs:/bucket of gs://bucket, a folder here. One letter is a drive of Windows.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")


def check_local(what: str, path: str | Path, fix: str = "") -> None:
    """Refuses an address, such as gs://bucket/folder, where only a path of this machine is of use.

    Args:
      what: the flag or argument, as the message names it.
      path: what it was given.
      fix: what to do instead.

    Raises:
      InputError: it is an address.
    """
    if _ADDRESS.match(str(path)):
        address = _ADDRESS.sub(r"\1://", str(path), count=1)
        raise InputError(f"{what} {address!r} is no path of this machine", "a local path", fix)


def assets_directory() -> Path:
    """The folder of the models shipped inside the package."""
    return Path(__file__).resolve().parent / "assets"


def find_model(name_or_path: str | Path) -> Path:
    """The model directory that a name or path stands for.

    A checkpoint in a PyTorch layout, in a directory or on the Hugging Face hub, is converted into
    the user's cache when it is first asked for; one line on stderr says so.

    Args:
      name_or_path: a shipped name, a directory, or a Hugging Face id with optional `@revision`.

    Raises:
      InputError: there is none, or it cannot be converted; says which names and forms there are.
    """
    name = str(name_or_path)
    check_local("model", name, "copy it to a disk first")
    allowed = (
        f"{', '.join(SHIPPED)}, debug, a directory written by janus-jax train or convert, a "
        "directory of PyTorch weights, or a Hugging Face id such as deepseek-ai/Janus-Pro-1B"
    )
    path = assets_directory() / name if name in SHIPPED else Path(name).expanduser()
    if is_model(path):
        return path
    if name in SHIPPED:
        raise InputError(
            f"the shipped model {name!r} is missing from this installation",
            fix="install janus-jax again",
        )
    if name in NAMED:
        raise InputError(
            f"model {name!r} is an architecture whose weights are not shipped", allowed
        )
    if path.is_dir():
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            raise InputError(
                f"model {name!r} is a directory without manifest.json, so not a model", allowed
            )
    elif path.exists():
        raise InputError(f"model {name!r} is a file", allowed)
    else:
        from convert.hub import is_id

        if not is_id(name):
            raise InputError(f"there is no model {name!r}", allowed)
    from convert.cached import cached_model

    return cached_model(name)


def is_model(path: Path) -> bool:
    """Whether a directory is one of ours, by its manifest."""
    return (path / "manifest.json").is_file()
