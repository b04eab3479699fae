"""Which model directory a name or path stands for.

Free of JAX, so that the command line can refuse a misspelt name before anything heavy loads.
"""

from __future__ import annotations

from pathlib import Path

from janus_jax.config import NAMED
from janus_jax.errors import InputError

SHIPPED = ("emoji",)


def assets_directory() -> Path:
    """The folder of the models shipped inside the package."""
    return Path(__file__).resolve().parent / "assets"


def find_model(name_or_path: str | Path) -> Path:
    """The model directory that a name or path stands for.

    Raises:
      InputError: there is none; says which names and forms there are.
    """
    name = str(name_or_path)
    allowed = f"{', '.join(SHIPPED)}, debug, or a directory written by janus-jax train"
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
        if any(path.glob("*.safetensors")) or any(path.glob("*.bin")):
            raise InputError(
                f"model {name!r} is in a PyTorch layout, which this release does not convert",
                allowed,
            )
        raise InputError(
            f"model {name!r} is a directory without manifest.json, so not a model", allowed
        )
    if path.exists():
        raise InputError(f"model {name!r} is a file", allowed)
    parts = name.partition("@")[0].split("/")
    if len(parts) == 2 and all(parts) and not name.startswith((".", "~")):
        raise InputError(
            f"model {name!r} is no directory; if it is a Hugging Face id, this release does not "
            "download models",
            allowed,
        )
    raise InputError(f"there is no model {name!r}", allowed)


def is_model(path: Path) -> bool:
    """Whether a directory is one of ours, by its manifest."""
    return (path / "manifest.json").is_file()
