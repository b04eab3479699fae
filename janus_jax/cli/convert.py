"""``janus-jax convert``: weights in, weights out."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from janus_jax.cli.common import progress_bar, terminable
from janus_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert weights between PyTorch's layouts and ours.

    janus-jax convert deepseek-ai/Janus-Pro-1B models/pro-1b

    janus-jax convert models/pro-1b exported --to hf

    janus-jax convert downloads/Janus-Pro-7B models/pro-7b --dtype bfloat16 --verify

    janus-jax convert vq_ds16_t2i.pt parts/vq --part vq

    The layout of the source is detected: DeepSeek's files (.bin or safetensors), transformers', or
    a model directory of ours. No code of a checkpoint is ever run. The destination appears whole
    or not at all; a run that was stopped is started again with the same command.

    Attributes:
        source: Directory, or Hugging Face id with optional @revision.
        destination: Directory to write.
        to: Our own model directory (`orbax`), or safetensors in a peer's layout.
        dtype: Storage precision; by default each tensor keeps its own.
        part: Convert one published component instead of a whole Janus: a Llama language model, a
            SigLIP vision tower, or a LlamaGen VQ tokenizer.
        max_shard_size: Most GB of a safetensors file.
        verify: Read everything back and compare checksums; with transformers and torch installed,
            compare logits too.
        dry_run: List every tensor, where it goes and how it changes; write nothing.
        overwrite: Replace a converted model that is there.
        json: Print one JSON object on stdout.
    """

    source: Annotated[str, tyro.conf.Positional]
    destination: Annotated[Path, tyro.conf.Positional]
    to: Literal["orbax", "hf", "deepseek"] = "orbax"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    part: Literal["llm", "vision", "vq"] | None = None
    max_shard_size: float = 5.0
    verify: bool = False
    dry_run: bool = False
    overwrite: bool = False
    json: bool = False


def run(options: Convert) -> int:
    """Converts.

    Args:
        options: The parsed command line.

    Returns:
        0.

    Raises:
        InputError: A source or destination that cannot be used.
    """
    if options.max_shard_size <= 0:
        raise InputError(f"--max-shard-size is {options.max_shard_size}", "gigabytes above 0")
    with terminable():
        return _run(options)


def _run(options: Convert) -> int:
    if options.part is not None:
        if options.to != "orbax" or options.verify or options.dry_run:
            raise InputError("--part goes with --dtype, --overwrite and --json only")
        return _part(options)
    from convert.pipeline import convert
    from convert.source import open_source

    # Orbax logs the whole traceback of what it also raises; our one line would be lost below it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    source = open_source(options.source)
    for note in source.notes:
        print(note, file=sys.stderr)
    if options.dry_run:
        return _dry_run(options, source)
    with progress_bar("converting", nbytes=True) as progress:
        done = convert(
            source,
            options.destination,
            to=options.to,
            dtype=options.dtype,
            overwrite=options.overwrite,
            max_shard_bytes=int(options.max_shard_size * 1e9),
            progress=progress,
        )
    report: dict[str, Any] = _report(done)
    if options.verify:
        from convert.pipeline import record_verification
        from convert.verify import verify

        found = verify(options.destination, source)
        record_verification(options.destination, found.to_json())
        report["verified"] = found.to_json()
    _print(report, options.json)
    return 0


def _part(options: Convert) -> int:
    from convert.pipeline import convert_part

    assert options.part is not None
    with progress_bar("converting", nbytes=True) as progress:
        done = convert_part(
            options.part,
            options.source,
            options.destination,
            dtype=options.dtype,
            overwrite=options.overwrite,
            progress=progress,
        )
    _print(_report(done), options.json)
    return 0


def _dry_run(options: Convert, source: Any) -> int:
    import numpy as np

    from convert.pipeline import lines

    found = lines(source, options.to, None if options.dtype is None else np.dtype(options.dtype))
    total = sum(line.nbytes for line in found)
    if options.json:
        content = {
            "layout": source.layout,
            "tensors": [dataclasses.asdict(line) for line in found],
            "dropped": list(source.dropped),
            "bytes": total,
        }
        print(json.dumps(content))
        return 0
    width = max(len(line.source) for line in found)
    other = max(len(line.destination) for line in found)
    for line in found:
        shape = "x".join(map(str, line.shape)) or "scalar"
        print(
            f"{line.source:{width}s}  {line.destination:{other}s}  "
            f"{shape:>18s} {line.dtype:9s} {line.transform}"
        )
    for key in source.dropped:
        print(f"{key:{width}s}  left behind")
    print(f"{source.layout} layout, {len(found)} tensors, {total / 1e9:.3f} GB; nothing written")
    return 0


def _report(done: Any) -> dict[str, Any]:
    return {
        "destination": str(done.destination),
        "tensors": done.tensors,
        "dropped": list(done.dropped),
        "bytes": done.nbytes,
    }


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    print(report["destination"])
    size = f"{report['tensors']} tensors, {report['bytes'] / 1e9:.3f} GB"
    dropped = f", left behind: {', '.join(report['dropped'])}" if report["dropped"] else ""
    print(f"{size}{dropped}", file=sys.stderr)
    if "verified" in report:
        parity = report["verified"]["parity"]
        if "skipped" in parity:
            logits = f"logits not compared: {parity['skipped']}"
        else:
            logits = (
                f"logits within {parity['text_logits']:.1e} (text) and "
                f"{parity['image_logits']:.1e} (image) of transformers'"
            )
        print(f"verified: all checksums; {logits}", file=sys.stderr)
