"""A conversion from end to end: any source, any destination, checked before the first byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert.card import model_card
from convert.destinations.model_directory import stored_as, write_model_directory
from convert.destinations.torch_layout import (
    CONVERSION_FILE,
    export_plan,
    export_specs,
    write_torch_layout,
)
from convert.layouts import DEEPSEEK_LAYOUT, HF_LAYOUT, Layout
from convert.parts import Part, plan_part
from convert.source import ORBAX, Source, file_digests, imported
from janus_jax.atomic import new_directory
from janus_jax.errors import InputError
from janus_jax.manifest import (
    holds_only,
    is_only_model,
    new_manifest,
    read_json,
    write_json,
    write_text,
)
from janus_jax.params_io import LazyTensor, save_tensors

Target = Literal["orbax", "hf", "deepseek"]
Progress = Callable[[int, int], None]

PEERS: dict[str, Layout] = {"hf": HF_LAYOUT, "deepseek": DEEPSEEK_LAYOUT}
PART_FILE = "part.json"
PART_FORMAT = "janus-jax-part"
# What an export consists of.
_EXPORTED = ("README.md", "*.json", "*.safetensors", "chat_template.jinja")
# Beside the tensors: config, tokenizer (5 MB in DeepSeek's files), index, card.
_SMALL_FILES = 2**24


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
      destination: the directory.
      tensors: how many tensors it holds.
      dropped: keys of the source that were left behind.
      nbytes: bytes of all tensors.
    """

    destination: Path
    tensors: int
    dropped: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True)
class Line:
    """One tensor of a conversion, as `--dry-run` lists it.

    Attributes:
      source: its key or path in the source.
      destination: its key or path in the destination.
      shape: shape in the destination; of its own rows where several are fused into one.
      dtype: dtype in the destination.
      transform: what happens to it on the way, step by step.
      nbytes: bytes in the destination.
    """

    source: str
    destination: str
    shape: tuple[int, ...]
    dtype: str
    transform: str
    nbytes: int


def lines(source: Source, to: Target, dtype: np.dtype | None) -> list[Line]:
    """The whole mapping, nothing read or written.

    Args:
      source: the model.
      to: destination's layout.
      dtype: storage dtype; None keeps each tensor's own.
    """
    params = stored_as(source.params, dtype)
    origin = {e.ours: e for e in source.plan.entries} if source.plan else {}

    def step_in(path: str) -> tuple[str, str]:
        if path not in origin:
            return path, "same"
        entry = origin[path]
        part = "" if entry.start is None else f"rows {entry.start}.. "
        return entry.theirs, f"{part}{entry.transform.name}"

    if to == ORBAX:
        return [
            Line(key, path, tensor.shape, tensor.dtype.name, transform, tensor.nbytes)
            for path, tensor in params.items()
            for key, transform in [step_in(path)]
        ]
    plan = export_plan(source, PEERS[to])
    specs = export_specs(plan, params)
    result = []
    for entry in plan.entries:
        key, transform = step_in(entry.ours)
        spec = specs[entry.theirs]
        fused = "" if entry.start is None else f" to rows {entry.start}.."
        result.append(
            Line(
                key,
                entry.theirs,
                entry.their_shape,
                spec.dtype.name,
                f"{transform} / {entry.transform.name}{fused}",
                params[entry.ours].nbytes,
            )
        )
    return result


def convert(
    source: Source,
    destination: str | Path,
    *,
    to: Target = "orbax",
    dtype: str | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = 5 * 10**9,
    progress: Progress | None = None,
) -> Converted:
    """Converts a model; the destination appears whole or not at all.

    Args:
      source: the model, as `convert.source.open_source` gives it.
      destination: a new or empty directory.
      to: `orbax` (a model directory of ours), `hf` or `deepseek`.
      dtype: storage dtype; None keeps each tensor's own.
      overwrite: replace a converted model that is there.
      max_shard_bytes: most bytes of tensors in a file of the peers' layouts.
      progress: called with (bytes done, bytes in all).

    Returns:
      What was written.

    Raises:
      InputError: an unusable destination, too little disk, or a layout that cannot express the
        model.
    """
    stored = None if dtype is None else np.dtype(dtype)
    total = sum(t.nbytes for t in stored_as(source.params, stored).values())
    if to != ORBAX:
        export_plan(source, PEERS[to])  # what does not fit is refused before anything is written
    with (
        new_directory(
            destination,
            what="a converted model",
            replaceable=lambda path: overwrite and _is_converted(path),
            needed=total + _SMALL_FILES,
        ) as new,
        ThreadPoolExecutor(1) as pool,
    ):
        # The source's files are hashed while its tensors are converted: what one of the two has
        # brought into memory the other need not read again.
        facts = pool.submit(_facts, source).result

        def card() -> str:
            return model_card(source, facts(), to)

        if to == ORBAX:
            tensors = write_model_directory(
                new, source, stored, card=card, facts=facts, progress=_counted(progress, total)
            )
        else:
            tensors = write_torch_layout(
                new,
                source,
                PEERS[to],
                stored,
                max_shard_bytes=max_shard_bytes,
                card=card,
                facts=facts,
                progress=_counted(progress, total),
            )
    return Converted(Path(destination), len(tensors), source.dropped, total)


def convert_part(
    kind: str,
    name: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Converts a published component into the parameters of one part of a Janus.

    Args:
      kind: `llm`, `vision` or `vq`.
      name: its directory or file.
      destination: a new or empty directory; gets `params/` and `part.json`.
      dtype: storage dtype; None keeps each tensor's own.
      overwrite: replace a converted part that is there.
      progress: called with (bytes done, bytes in all).

    Raises:
      InputError: an unusable source or destination, or too little disk.
      MappingError: keys or shapes that do not fit; all of them.
    """
    part = plan_part(kind, name)
    stored = None if dtype is None else np.dtype(dtype)
    params = stored_as(imported(part.plan, part.tensors), stored)
    total = sum(tensor.nbytes for tensor in params.values())
    with new_directory(
        destination,
        what="a converted part",
        replaceable=lambda path: overwrite and _is_part(path),
        needed=total + _SMALL_FILES,
    ) as new:
        _write_part(new, part, params, Path(name).absolute().name, _counted(progress, total))
    return Converted(Path(destination), len(params), part.plan.dropped, total)


def _write_part(
    directory: Path,
    part: Part[Any],
    params: dict[str, LazyTensor],
    source: str,
    progress: Callable[[int], None] | None,
) -> None:
    tensors = save_tensors(directory / "params", params, progress=progress)
    content = {
        **new_manifest(tensors, source=source),
        "format": PART_FORMAT,
        "part": part.kind,
        "config": vars(part.config),
        "dropped": list(part.plan.dropped),
    }
    write_json(directory / PART_FILE, content)


def _facts(source: Source) -> dict[str, Any]:
    if source.layout == ORBAX:  # what its own source was matters, not that it passed through ours
        return {**source.origin, "source": source.description()}
    return {
        "source": source.description(),
        "revision": source.revision,
        "source_layout": source.layout,
        "source_files": file_digests(source.files),
        "dropped": list(source.dropped),
    }


def _is_converted(path: Path) -> bool:
    """Whether a directory is what `convert` writes and holds nothing else."""
    marks = {"tensors", "source"} <= _content(path / CONVERSION_FILE).keys()
    return is_only_model(path) or (marks and holds_only(path, _EXPORTED))


def _is_part(path: Path) -> bool:
    """Whether a directory is what `convert_part` writes and holds nothing else."""
    marked = _content(path / PART_FILE).get("format") == PART_FORMAT
    return marked and holds_only(path, (PART_FILE, "params"))


def _content(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except InputError:
        return {}


def _counted(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    return count


def read_conversion(directory: Path) -> dict[str, Any]:
    """The tensors' entries, and the facts, of a directory that a conversion wrote.

    Raises:
      InputError: it was not written by a conversion.
    """
    for name in ("manifest.json", CONVERSION_FILE):
        if (directory / name).is_file():
            return json.loads((directory / name).read_text(encoding="utf-8"))
    raise InputError(f"{str(directory)!r} was not written by janus-jax convert")


def record_verification(directory: Path, found: dict[str, Any]) -> None:
    """Writes what `convert.verify` found into the manifest and the card of a conversion."""
    name = "manifest.json" if (directory / "manifest.json").is_file() else CONVERSION_FILE
    write_json(directory / name, {**read_conversion(directory), "verified": found})
    card = directory / ("MODEL_CARD.md" if name == "manifest.json" else "README.md")
    parity = found["parity"]
    text = f"All {found['tensors']} tensors were read back and matched their checksums.\n"
    if "skipped" not in parity:
        text += (
            f"Logits beside transformers', float32: text within {parity['text_logits']:.2e}, image "
            f"within {parity['image_logits']:.2e}.\n"
        )
    write_text(card, f"{card.read_text(encoding='utf-8')}\n## Verified\n\n{text}")
