"""PNG files that say how their picture was drawn, so that it can be drawn again."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_jax.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from janus_jax.api import Janus

SETTINGS = ("cfg", "temperature", "top_k", "top_p")


def stem(prompt: str, seed: int, index: int) -> str:
    """A file name without its ending: `red-apple-seed0-1`; letters and digits of any script."""
    words = re.sub(r"[\W_]+", "-", prompt).strip("-").lower()
    # File names are limited to 255 bytes, and a letter may take four.
    while len(words.encode()) > 120:
        words = words[:-1]
    return f"{words.strip('-') or 'picture'}-seed{seed}-{index}"


def metadata(
    model: Janus, prompt: str, seed: int, index: int, settings: Mapping[str, Any]
) -> dict[str, str]:
    """What it takes to draw a picture again.

    Args:
        model: What draws it.
        prompt: Of what.
        seed: Seed.
        index: Number of the picture among those of the prompt.
        settings: Values for `SETTINGS`; others are left out.
    """
    from janus_jax import __version__

    kept = {key: settings[key] for key in SETTINGS}
    return {
        "prompt": prompt,
        "seed": str(seed),
        "index": str(index),
        "settings": json.dumps({**kept, "dtype": str(model.dtype)}),
        "model": f"{model.name} {model.fingerprint}",
        "Software": f"janus-jax {__version__}",
    }


def encode(image: Image.Image, about: Mapping[str, str]) -> bytes:
    """A PNG file with these texts in it."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in about.items():
        info.add_itxt(key, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def is_complete(path: Path, about: Mapping[str, str]) -> bool:
    """Whether a file is an undamaged PNG with these texts; one by another release counts too."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            found = dict(image.info)
            image.verify()  # every chunk to the last, by its checksum
    except (OSError, SyntaxError, ValueError):
        return False
    return all(found.get(key) == text for key, text in about.items() if key != "Software")


def write_new(path: Path, content: bytes) -> None:
    """Writes a file that appears whole, and only where none is.

    Raises:
        FileExistsError: There is a file.
        OSError: It cannot be written.
    """
    hidden = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        hidden.write_bytes(content)
        try:
            os.link(hidden, path)  # a rename would replace what is there
        except FileExistsError:
            raise
        except OSError:
            # Buckets mounted as folders have no links. One more look is all that can be done.
            if path.exists():
                raise FileExistsError(path) from None
            hidden.rename(path)
    finally:
        hidden.unlink(missing_ok=True)


def write_over(path: Path, content: bytes) -> None:
    """Writes a file that appears whole, in place of any that is there.

    One process at a time may write it: what a killed one left half-written is then used up.

    Raises:
        OSError: It cannot be written.
    """
    hidden = path.with_name(f".{path.name}.writing")
    try:
        hidden.write_bytes(content)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def prepare_directory(out: Path) -> None:
    """Makes the output directory before anything slow happens.

    Raises:
        InputError: It cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        writable = os.access(out, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"--out {str(out)!r} cannot be a directory ({reason})", "a directory", "choose another"
        ) from error
    if not writable:
        raise InputError(
            f"--out {str(out)!r} is not writable", "a writable directory", "choose another"
        )
