"""manifest.json: the shape, dtype and sha256 of every stored tensor, and what wrote them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax import __version__
from janus_jax.errors import InputError

FORMAT = "janus-jax-manifest"
VERSION = 1

MODEL_FILES = (
    "config.json",
    "params",
    "tokenizer.json",
    "preprocessor.json",
    "manifest.json",
    "MODEL_CARD.md",
)
"""All that a model directory holds."""


def entry(shape: tuple[int, ...], dtype: np.dtype, digest: str) -> dict[str, Any]:
    """The manifest's entry of one tensor: `shape`, `dtype` and `sha256`."""
    return {"shape": list(shape), "dtype": dtype.name, "sha256": digest}


def new_manifest(tensors: dict[str, dict[str, Any]], *, source: str) -> dict[str, Any]:
    """The content of manifest.json.

    Args:
      tensors: entries as `entry` makes them, by parameter path.
      source: where the weights come from.

    Returns:
      A JSON object.
    """
    packages = ("jax", "flax", "orbax-checkpoint", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "format": FORMAT,
        "version": VERSION,
        "source": source,
        "versions": {"janus-jax": __version__, **versions},
        "tensors": tensors,
    }


def sha256(array: np.ndarray) -> str:
    """Hex digest of an array's bytes, little-endian and row-major."""
    little = np.ascontiguousarray(array)
    return hashlib.sha256(little.reshape(-1).view(np.uint8).data).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Writes an indented JSON file, which appears whole or not at all."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, which appears whole or not at all."""
    working = path.with_name(f".{path.name}.writing")
    working.write_text(text, encoding="utf-8")
    working.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      InputError: missing, unreadable or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{str(path)!r} does not exist", fix="copy the whole model") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} is not a JSON object")
    return content


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads and checks the manifest of a model directory.

    Raises:
      InputError: missing, another version, or malformed.
    """
    name = str(directory / "manifest.json")
    manifest = read_json(directory / "manifest.json")
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise InputError(
            f"{name!r} has format {manifest.get('format')!r} version {manifest.get('version')!r}",
            f"{FORMAT} version {VERSION}",
        )
    try:
        for tensor in manifest["tensors"].values():
            np.dtype(tensor["dtype"])
            if not all(isinstance(n, int) for n in tensor["shape"]):
                raise TypeError(f"shape {tensor['shape']}")
            if not isinstance(tensor["sha256"], str):
                raise TypeError(f"sha256 {tensor['sha256']}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{name!r} is malformed ({error!r})") from error
    return manifest


def is_only_model(directory: Path) -> bool:
    """Whether a directory is a model of ours and holds nothing else, so that it may be replaced."""
    try:
        read_manifest(directory)
    except InputError:
        return False
    return holds_only(directory, MODEL_FILES)


def holds_only(directory: Path, patterns: Iterable[str]) -> bool:
    """Whether every name in a directory matches a pattern, or was left by a killed `write_text`."""
    known = (*patterns, ".*.writing")
    return all(any(fnmatchcase(path.name, p) for p in known) for path in directory.iterdir())
