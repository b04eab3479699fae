"""JSON files of strangers: bounded, plain, and refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convert.readers.strict_json import parse_object
from janus_jax.errors import InputError

MAX_BYTES = 2**20
"""Configs are a few kilobytes."""


def read_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: the file.
      max_bytes: largest size accepted; a bigger file is not read.

    Raises:
      InputError: missing, unreadable, too big, not JSON, nested too deeply, with keys set twice, or
        no object.
    """
    return parse_object(_read(path, max_bytes), path, "file")


def read_text(path: Path, *, max_bytes: int) -> str:
    """Reads a UTF-8 file of at most so many bytes.

    Raises:
      InputError: missing, unreadable, too big, or not UTF-8.
    """
    try:
        return _read(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not UTF-8 text") from error


def _read(path: Path, max_bytes: int) -> bytes:
    name = repr(str(path))
    if not path.exists():
        raise InputError(f"{name} does not exist", fix="copy the whole model")
    if not path.is_file():
        raise InputError(f"{name} is not a regular file")
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror or error})") from error
    if len(content) > max_bytes:
        raise InputError(f"{name} is too big", f"at most {max_bytes} bytes")
    return content


def write_object(path: Path, content: Any) -> None:
    """Writes an indented JSON file, keys as they come."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
