"""What a conversion reads: a checkpoint in any layout, seen as our parameters."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convert.configs import named, plan_whole, read_config
from convert.engine import Entry, Plan, shapes_of
from convert.hub import fetch, is_id
from convert.layouts import detect
from convert.processors import read_processor
from convert.readers.checkpoint import open_checkpoint
from janus_jax.config import JanusConfig
from janus_jax.errors import InputError
from janus_jax.locate import is_model
from janus_jax.manifest import read_json, read_manifest, sha256
from janus_jax.params_io import LazyTensor, check_structure, open_params
from janus_jax.processing.settings import ProcessorConfig
from janus_jax.processing.tokenizer import Tokenizer

ORBAX = "orbax"
FACTS = ("source", "revision", "source_layout", "source_files", "dropped")
"""What a manifest says about the source of the weights."""


@dataclass(frozen=True, eq=False)
class Source:
    """A whole model that has been checked and not yet read.

    Attributes:
      label: what the user called it.
      directory: where it lies.
      revision: commit of the hub's repository; empty for a directory.
      layout: `orbax` (a model directory of ours), `hf`, `hf-older` or `deepseek`.
      config: architecture.
      tokenizer: vocabulary.
      settings: image settings, role names, system prompt.
      tensors: what is stored: by key, with `shape`, `dtype` and `nbytes`.
      params: our parameters by path, each read when its turn comes.
      plan: how stored tensors become parameters; None where they are.
      files: the files that hold weights.
      notes: what the user should be told.
      origin: what the manifest of a model directory of ours says about its own source.
    """

    label: str
    directory: Path
    revision: str
    layout: str
    config: JanusConfig
    tokenizer: Tokenizer
    settings: ProcessorConfig
    tensors: Mapping[str, Any]
    params: dict[str, LazyTensor]
    plan: Plan | None
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Keys of tensors that are left behind, each on the layout's list."""
        return self.plan.dropped if self.plan else ()

    def description(self) -> str:
        """One line for manifests: where the weights come from."""
        at = f"@{self.revision}" if self.revision else ""
        if self.layout == ORBAX:
            return str(self.origin.get("source") or self.directory.name)
        # A path would tell whose machine it was; its last part is what it was called.
        name = self.label.partition("@")[0] if self.revision else self.directory.name
        return f"{name}{at} ({self.layout} layout)"


def open_source(name: str | Path) -> Source:
    """Opens a checkpoint and checks all of it but the numbers.

    Args:
      name: a directory in DeepSeek's layout, transformers' layout or ours, or a Hugging Face id
        with optional `@revision`.

    Raises:
      InputError: no such thing, hostile or damaged files, or files that do not belong together.
      MappingError: keys or shapes that do not fit the architecture; all of them.
    """
    label, revision = str(name), ""
    directory = Path(name).expanduser()
    if not directory.exists() and is_id(label):
        snapshot = fetch(label)
        directory, revision = snapshot.path, snapshot.revision
    if not directory.is_dir():
        raise InputError(
            f"{label!r} is no directory{'' if directory.exists() else ', and does not exist'}",
            "a directory of weights, or a Hugging Face id such as deepseek-ai/Janus-Pro-1B",
        )
    if is_model(directory):
        return _ours(label, directory)
    checkpoint = open_checkpoint(directory)
    layout = detect(checkpoint.tensors)
    config = read_config(directory, layout)
    plan = plan_whole(config, layout.table, shapes_of(checkpoint.tensors))
    processor = read_processor(directory, layout, config, source=label)
    notes = ()
    if checkpoint.passed_over:
        notes = (f"read {checkpoint.entry}, not {', '.join(checkpoint.passed_over)}",)
    return Source(
        label,
        directory,
        revision,
        layout.name,
        named(config, processor.settings.roles),
        processor.tokenizer,
        processor.settings,
        checkpoint.tensors,
        imported(plan, checkpoint.tensors),
        plan,
        checkpoint.files,
        notes,
    )


def imported(plan: Plan, tensors: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Stored tensors as our parameters, by path: views of the files, read when they are used."""

    def read(entry: Entry) -> np.ndarray:
        return plan.to_ours(entry, tensors[entry.theirs])

    return {
        entry.ours: LazyTensor(
            entry.our_shape, np.dtype(tensors[entry.theirs].dtype), partial(read, entry)
        )
        for entry in plan.entries
    }


def _ours(label: str, directory: Path) -> Source:
    from janus_jax.functional import abstract, flat_params

    config = JanusConfig.from_json(read_json(directory / "config.json"))
    manifest = read_manifest(directory)
    entries = manifest["tensors"]
    params = {
        name: _checked(name, tensor, entries)
        for name, tensor in open_params(directory / "params").items()
    }
    check_structure(
        directory / "manifest.json",
        {name: tuple(entry["shape"]) for name, entry in entries.items()},
        params,
    )
    found = {name: tensor.shape for name, tensor in params.items()}
    check_structure(directory, found, flat_params(abstract(config)[1]))
    return Source(
        label,
        directory,
        "",
        ORBAX,
        config,
        Tokenizer.from_file(directory / "tokenizer.json"),
        ProcessorConfig.load(directory / "preprocessor.json"),
        params,
        params,
        None,
        (),
        origin={key: manifest[key] for key in FACTS if key in manifest},
    )


def _checked(name: str, tensor: LazyTensor, entries: Mapping[str, Any]) -> LazyTensor:
    """The same tensor, compared with its checksum when it is read: damage is not passed on."""

    def read() -> np.ndarray:
        array = tensor.read()
        if sha256(array) != entries[name]["sha256"]:
            raise InputError(
                f"parameter {name!r} is damaged: its sha256 is not that of manifest.json",
                fix="copy or convert the model again",
            )
        return array

    return dataclasses.replace(tensor, read=read)


def file_digests(files: tuple[Path, ...]) -> dict[str, str]:
    """sha256 of whole files, by name; several at once, for hashing is slower than most disks."""

    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:
        return dict(zip([path.name for path in files], pool.map(digest, files), strict=True))
