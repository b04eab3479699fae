"""Our own model directory, written tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.source import Source
from janus_jax.manifest import new_manifest, write_json
from janus_jax.params_io import LazyTensor, save_tensors

Progress = Callable[[int], None]


def stored_as(params: Mapping[str, LazyTensor], dtype: np.dtype | None) -> dict[str, LazyTensor]:
    """The same parameters, to be stored in another dtype; None keeps each tensor's own."""
    if dtype is None:
        return dict(params)
    return {k: dataclasses.replace(tensor, dtype=dtype) for k, tensor in params.items()}


def write_model_directory(
    directory: Path,
    source: Source,
    dtype: np.dtype | None,
    *,
    card: Callable[[], str],
    facts: Callable[[], Mapping[str, Any]],
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Fills an empty directory.

    Args:
      directory: the directory.
      source: the model.
      dtype: storage dtype; None keeps each tensor's own.
      card: gives the content of MODEL_CARD.md.
      facts: gives what the manifest says beside the tensors.
      progress: called with bytes as they are written.

    Returns:
      The manifest's entries by parameter path.
    """
    tensors = save_tensors(directory / "params", stored_as(source.params, dtype), progress=progress)
    write_json(directory / "config.json", source.config.to_json())
    source.tokenizer.save(directory / "tokenizer.json")
    source.settings.save(directory / "preprocessor.json")
    (directory / "MODEL_CARD.md").write_text(card(), encoding="utf-8")
    manifest = new_manifest(tensors, source=source.description())
    write_json(directory / "manifest.json", {**manifest, **facts()})
    return tensors
