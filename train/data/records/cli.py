"""`janus-jax data`: pack, encode and inspect data sets, and list what a run takes of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from janus_jax.cli.common import mesh_of_all_devices, progress_bar
from janus_jax.cli.parsing import parse
from janus_jax.cpu_threads import cores
from janus_jax.errors import InputError

USAGE = """usage: janus-jax data {pack,encode,inspect,ids} ...

  pack      JSONL, WebDataset tar or Parquet files into ArrayRecord shards
  encode    add image tokens, so that training needs no pictures
  inspect   counts, sizes, token lengths, broken records, a contact sheet
  ids       the samples that any step of a run holds

Each has its own --help. pack and encode go on where they were stopped.
"""


@dataclasses.dataclass(frozen=True)
class Pack:
    """Pack files into a data set.

    janus-jax data pack captions.jsonl --out data/captions

    janus-jax data pack "shards/*.tar" more.parquet --out data/web --captions both --workers 8

    A line of JSONL, a sample of a tar shard or a row of Parquet holds `image` (or `images`) with
    `caption`, or with `turns` [{role, text}, ...], or turns alone.

    Attributes:
        inputs: Files, patterns or directories; local, or gs:// and s3:// with the extra [remote].
        out: Directory of the data set.
        captions: What a picture with a caption is for.
        max_broken: Largest share of broken records that is accepted; all are listed.
        workers: Processes; by default one a core.
        overwrite: Delete the data set that is there.
        json: Print the manifest's summary as JSON.
    """

    inputs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="INPUT...")]
    out: Path
    captions: Literal["generation", "understanding", "both"] = "generation"
    max_broken: float = 0.01
    workers: int = dataclasses.field(default_factory=cores)
    overwrite: bool = False
    json: bool = False


@dataclasses.dataclass(frozen=True)
class Encode:
    """Add image tokens to the generation records of a data set.

    janus-jax data encode data/web --out data/web-codes --model deepseek-ai/Janus-Pro-1B

    Attributes:
        source: A packed data set.
        out: Directory of the encoded data set.
        model: The model whose VQ tokenizer encodes.
        mesh: Spread the pictures over all devices of this host, such as fsdp=8.
        keep_images: Keep the pictures beside their tokens.
        overwrite: Delete the data set that is there.
        json: Print the manifest's summary as JSON.
    """

    source: tyro.conf.Positional[Path]
    out: Path
    model: str = "emoji"
    mesh: str | None = None
    keep_images: bool = False
    overwrite: bool = False
    json: bool = False


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Say what a data set holds.

    janus-jax data inspect data/web --sheet sheet.png

    Attributes:
        source: A packed data set.
        model: Its tokenizer and image sizes give the token lengths.
        samples: Records of each kind to look into.
        sheet: PNG to draw, with a sample of the pictures and their texts.
        seed: Which records are sampled.
        json: Print JSON.
    """

    source: tyro.conf.Positional[Path]
    model: str = "emoji"
    samples: int = 1000
    sheet: Path | None = None
    seed: int = 0
    json: bool = False


@dataclasses.dataclass(frozen=True)
class Ids:
    """List the samples of steps of a run, without running them.

    janus-jax data ids runs/stage3 --step 1234

    Attributes:
        run: Directory of the run.
        step: The step, from 0; the metrics of step 1235 are of what step 1234 held.
        count: How many steps from there on.
        json: Print a line of JSON for each sample.
    """

    run: tyro.conf.Positional[Path]
    step: int
    count: int = 1
    json: bool = False


def main(argv: list[str]) -> int:
    """Runs `janus-jax data` with the arguments after it.

    Returns:
      0.

    Raises:
      InputError: unusable arguments or data.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    commands: dict[str, tuple[type, Callable[[Any], None]]] = {
        "pack": (Pack, _pack),
        "encode": (Encode, _encode),
        "inspect": (Inspect, _inspect),
        "ids": (Ids, _ids),
    }
    if argv[0] not in commands:
        raise InputError(f"unknown command 'data {argv[0]}'", ", ".join(commands))
    kind, run = commands[argv[0]]
    run(parse(kind, argv[1:], prog=f"janus-jax data {argv[0]}"))
    return 0


def _pack(options: Pack) -> None:
    from train.data.records.pack import PackSettings, pack

    if not options.inputs:
        raise InputError("INPUT is missing", "files, patterns or directories")
    if options.workers < 1:
        raise InputError(f"--workers is {options.workers}", "1 or more")
    if not 0 <= options.max_broken <= 1:
        raise InputError(f"--max-broken is {options.max_broken}", "a share from 0 to 1")
    settings = PackSettings(options.inputs, options.captions)
    with progress_bar("packing") as progress:
        manifest = pack(
            settings,
            options.out,
            workers=options.workers,
            max_broken=options.max_broken,
            overwrite=options.overwrite,
            progress=progress,
        )
    _print_manifest(manifest, options.json)


def _encode(options: Encode) -> None:
    from janus_jax.checkpoint import load_model
    from train.data.records.encode import encode

    mesh = mesh_of_all_devices(options.mesh)
    loaded = load_model(options.model, dtype="float32", mesh=mesh)
    with progress_bar("encoding") as progress:
        manifest = encode(
            options.source,
            options.out,
            loaded.graphdef,
            loaded.params,
            image_size=loaded.config.image_size,
            fingerprint=f"{loaded.name} {loaded.fingerprint}",
            keep_images=options.keep_images,
            overwrite=options.overwrite,
            progress=progress,
        )
    _print_manifest(manifest, options.json)


def _inspect(options: Inspect) -> None:
    from janus_jax.config import JanusConfig
    from janus_jax.locate import find_model
    from janus_jax.manifest import read_json
    from janus_jax.processing.settings import ProcessorConfig
    from janus_jax.processing.tokenizer import Tokenizer
    from train.data.records.inspect import contact_sheet, inspect
    from train.data.records.shards import open_records

    data = open_records(options.source)
    directory = find_model(options.model)
    config = JanusConfig.from_json(read_json(directory / "config.json"))
    processor = ProcessorConfig.load(directory / "preprocessor.json")
    report = inspect(
        data,
        samples=options.samples,
        seed=options.seed,
        tokenizer=Tokenizer.from_file(directory / "tokenizer.json"),
        roles=processor.roles,
        system_prompt=processor.system_prompt,
        num_image_tokens=(config.vision.num_patches, config.num_image_tokens),
    )
    if options.sheet is not None:
        report["sheet"] = str(options.sheet)
        contact_sheet(data, options.sheet, seed=options.seed)
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
        return
    for kind, found in report["kinds"].items():
        line = f"{kind:14s} {found['records']:>12,} records  {found['bytes'] / 1e6:>10,.1f} MB"
        for key in ("tokens", "picture_sides"):
            if found[key]:
                low, middle, high = found[key].values()
                line += f"  {key.replace('_', ' ')} {low}..{middle}..{high}"
        print(line)
        for name, reason in found["unreadable"].items():
            print(f"  {name}: {reason}")
    _print_broken(report["broken"])
    if options.sheet is not None:
        print(options.sheet)


def _ids(options: Ids) -> None:
    from train.data.records.ids import sample_ids

    if options.step < 0 or options.count < 1:
        raise InputError(
            f"--step {options.step} --count {options.count}", "steps from 0, at least one"
        )
    for found in sample_ids(options.run, range(options.step, options.step + options.count)):
        if options.json:
            print(json.dumps(found, ensure_ascii=False))
        else:
            print(*found.values(), sep="\t")


def _print_manifest(manifest: dict[str, Any], as_json: bool) -> None:
    counts = {kind: entry["records"] for kind, entry in manifest["kinds"].items()}
    if as_json:
        print(json.dumps({"records": counts, "broken": manifest["broken"]}, ensure_ascii=False))
        return
    for kind, records in counts.items():
        print(f"{kind:14s} {records:>12,} records")
    _print_broken(manifest["broken"])


def _print_broken(broken: dict[str, Any]) -> None:
    for reason, count in broken["reasons"].items():
        print(f"broken         {count:>12,} {reason}")
