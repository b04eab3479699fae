"""A run on somebody's own files: packed, encoded, parted, and the run fitted to what they hold.

RUN_DIR/data/train     what is trained on, pictures to draw as image tokens
RUN_DIR/data/heldout   what is measured instead
RUN_DIR/data/broken.jsonl   records that cannot be used, with the reasons
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from janus_jax.cli.common import progress_bar
from janus_jax.config import JanusConfig
from janus_jax.errors import InputError
from janus_jax.hosts import by_first
from janus_jax.manifest import read_json
from janus_jax.models.janus import JanusModel
from janus_jax.nn.layers import ShapesOnly
from train import rundir
from train.config import Mixture, TrainConfig
from train.data.mixture import parse_data
from train.data.packing import KINDS, Kind
from train.data.record_source import check_codes
from train.data.records.encode import encode
from train.data.records.lengths import load_lengths
from train.data.records.pack import PackSettings, pack
from train.data.records.parting import part
from train.data.records.shards import open_records, read_manifest
from train.data.records.sources import is_file_input
from train.data.schedule import LengthTable, Schedule
from train.init import Origin, find_origin, initial_parts

# Rows are no longer than the published recipe's, and whole tiles of every attention kernel.
LONGEST, TILE = 4096, 128
_TRIED = 8


def resolve(config: TrainConfig, run_dir: Path) -> TrainConfig:
    """The config of the steps: files packed, and what was left to the data and the device decided.

    Where nothing was left open the config comes back as it is. A resumed run finds what was packed,
    and what was decided when it began (`train.rundir.settle`).

    Args:
      config: what the user set.
      run_dir: the run directory, held by `train.rundir.locked`, with that config in it.

    Raises:
      InputError: no data, files that cannot be used, too many broken records, or nothing to make
        image tokens with.
    """
    decided = rundir.read_resolved(run_dir)
    if config.compute_dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        dtype = decided.compute_dtype if decided else dtype
        config = dataclasses.replace(config, compute_dtype=dtype)
    if config.fit_to_data and not config.data:
        raise InputError("--data is missing", "a JSONL, tar or Parquet file, or a packed data set")
    files = tuple(name for name in config.data if is_file_input(name))
    if not files and not config.fit_to_data:
        return config
    origin = find_origin(config, run_dir)
    if files:
        by_first(lambda: pack_files(files, config, origin, run_dir))
        own, rest = run_dir / "data", [name for name in config.data if name not in files]
        kept_out = [str(own / "heldout")] if _has_records(own / "heldout") else []
        config = dataclasses.replace(
            config,
            data=(str(own / "train"), *rest),
            heldout=(*kept_out, *config.heldout),
        )
    if not config.fit_to_data:
        return config
    if decided is None:
        return fit(config, origin, run_dir)
    names = ("fit_to_data", "mixture", "batch_size", "length", "steps")
    return dataclasses.replace(config, **{name: getattr(decided, name) for name in names})


def data_digests(config: TrainConfig) -> list[str]:
    """For each data set of a run, held-out ones last, a digest of what its manifest says it holds.

    Raises:
      InputError: one that is none.
    """
    digests = []
    for names in filter(None, (config.data, config.heldout)):
        for found in parse_data(names):
            # The paths that it was made from say nothing about it.
            manifest = read_manifest(found.directory) | {"source": []}
            text = json.dumps(manifest, sort_keys=True)
            digests.append(hashlib.sha256(text.encode()).hexdigest()[:16])
    return digests


def pack_files(files: tuple[str, ...], config: TrainConfig, origin: Origin, run_dir: Path) -> None:
    """Packs files below the run directory, with image tokens of the run's own tokenizer.

    What is complete there is left as it is: a run goes on with the data that it began with.

    Args:
      files: JSONL, tar and Parquet files.
      config: the run.
      origin: its architecture.
      run_dir: its directory.

    Raises:
      InputError: as for `resolve`.
    """
    root = run_dir / "data"
    training, packed, encoded = root / "train", root / "packed", root / "encoded"
    if not (training / "manifest.json").is_file():
        with progress_bar("packing") as progress:
            pack(
                # The limit is the run's, checked below.
                PackSettings(files, config.captions),
                packed,
                workers=config.data_workers,
                max_broken=1.0,
                progress=progress,
            )
        _list_broken(packed, root / "broken.jsonl", config)
        kinds = dict(open_records(packed).kinds)
        if "generation" in kinds:
            _encode(packed, encoded, config, origin.model, run_dir)
            kinds |= open_records(encoded).kinds
        part(kinds, training, root / "heldout", share=config.heldout_share, source=files)
        shutil.rmtree(packed)
        shutil.rmtree(encoded, ignore_errors=True)
    for name, directory in (("training", training), ("held out", root / "heldout")):
        counts = {
            k: v["records"] for k, v in read_json(directory / "manifest.json")["kinds"].items()
        }
        listed = ", ".join(f"{n:,} {kind}" for kind, n in counts.items()) or "nothing"
        print(f"{config.name}: {name}: {listed}", file=sys.stderr)


def _list_broken(packed: Path, path: Path, config: TrainConfig) -> None:
    """Writes the broken records down, says how many there are, and refuses too many."""
    manifest = read_json(packed / "manifest.json")
    units = sorted((packed / "units").iterdir())
    broken: list[dict[str, Any]] = [b for unit in units for b in read_json(unit)["broken"]]
    if not broken:
        return
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in broken)
    path.write_text("".join(lines), encoding="utf-8")
    reasons = ", ".join(f"{n} x {reason}" for reason, n in manifest["broken"]["reasons"].items())
    total = len(broken) + sum(entry["records"] for entry in manifest["kinds"].values())
    what = f"{len(broken)} of {total} records are broken ({reasons})"
    print(f"{config.name}: {what}, listed in {path}", file=sys.stderr)
    limit = config.max_bad_samples
    if len(broken) > (limit * total if limit < 1 else limit):
        first = broken[0]
        raise InputError(
            f"{what}, --max-bad-samples is {limit:g}; the first: {first['id']}: {first['reason']}: "
            f"{first['detail']}",
            fix=f"raise --max-bad-samples and add --resume, or repair those that {path} lists and "
            "add --overwrite",
        )


class _Encoder(nnx.Module):
    """The part of a model that makes image tokens."""

    def __init__(self, config: JanusConfig):
        self.vq = JanusModel(config, ShapesOnly()).vq

    def vq_encode(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] -> int32 [B, P]."""
        return self.vq.encode(pixels)


def _encode(
    packed: Path, out: Path, config: TrainConfig, model: JanusConfig, run_dir: Path
) -> None:
    given = initial_parts(config, run_dir, model, None, {"vq"})
    if "vq" not in given:
        raise InputError(
            "pictures to draw need image tokens, and the run has no tokenizer to make them",
            fix="name a whole model by --init, or add vq=MODEL, or --captions understanding",
        )
    with progress_bar("encoding") as progress:
        encode(
            packed,
            out,
            nnx.graphdef(_Encoder(model)),
            nnx.State(given),
            image_size=model.image_size,
            fingerprint=config.initial_runs()["vq"],
            keep_images=True,
            progress=progress,
        )


def fit(config: TrainConfig, origin: Origin, run_dir: Path) -> TrainConfig:
    """Samples of a step, row length and number of steps, as the data suggest them.

    Kinds are taken in the ratio of their numbers of samples, so that a pass over the data sees each
    of them once. Rows are as long as leaves the fewest slots empty.

    Args:
      config: a run on packed data sets.
      origin: its tokenizer and image settings.
      run_dir: keeps what was measured of data sets that cannot be written to.

    Raises:
      InputError: the data sets hold no usable sample.
    """
    preparation = origin.preparation()
    tables: dict[Kind, LengthTable] = {}
    sets = [open_records(s.directory) for s in parse_data(config.data)]
    limit = config.length or LONGEST
    for kind in KINDS:
        holders = [s for s in sets if kind in s.kinds]
        found = [load_lengths(s, kind, preparation, fallback=run_dir / "lengths") for s in holders]
        for s, lengths in zip(holders, found, strict=True):
            check_codes(s, lengths)
        tokens = np.concatenate([f.tokens for f in found]) if found else np.zeros(0, np.int32)
        usable = tokens[(tokens > 0) & (tokens <= limit)]
        if len(usable):
            tables[kind] = LengthTable(usable)
        elif len(tokens):
            print(
                f"{config.name}: none of the {len(tokens):,} {kind} samples can be used in rows of "
                f"{limit}; it trains without them",
                file=sys.stderr,
            )
    counts: dict[Kind, int] = {kind: len(table.tokens) for kind, table in tables.items()}
    total = sum(counts.values())
    if not total:
        raise InputError(
            f"--data {' '.join(config.data)}: none of the samples can be used in rows of {limit}",
            fix="see what `janus-jax data inspect` says of them",
        )
    samples = shares(counts, min(max(config.batch_size, 1), total))
    batch = sum(samples.values())
    return dataclasses.replace(
        config,
        fit_to_data=False,
        mixture=Mixture(**samples),
        batch_size=batch,
        length=config.length or row_length(tables, samples, config.seed),
        steps=config.steps or max(math.ceil(config.epochs * total / batch), 1),
    )


def shares(counts: dict[Kind, int], batch: int) -> dict[Kind, int]:
    """A step's samples of each kind, in the ratio of the kinds' sizes, at least one of each.

    Args:
      counts: samples of each kind, at least 1.
      batch: samples of a step, at most all of them; more are taken where there are more kinds.
    """
    total = sum(counts.values())
    exact: dict[Kind, float] = {kind: n * batch / total for kind, n in counts.items()}
    taken: dict[Kind, int] = {kind: max(int(share), 1) for kind, share in exact.items()}
    while sum(taken.values()) < batch:
        short: dict[Kind, float] = {k: exact[k] - n for k, n in taken.items() if n < counts[k]}
        taken[max(short, key=short.__getitem__)] += 1
    while sum(taken.values()) > max(batch, len(counts)):
        over: dict[Kind, float] = {k: n - exact[k] for k, n in taken.items() if n > 1}
        taken[max(over, key=over.__getitem__)] -= 1
    return taken


def row_length(tables: dict[Kind, LengthTable], samples: dict[Kind, int], seed: int) -> int:
    """The row length, a multiple of 128, that holds a step's samples in the fewest slots.

    Of lengths within a tenth of the fewest the shortest is taken: attention is quadratic.
    """
    longest = max(int(table.tokens.max()) for table in tables.values())
    slots: dict[int, int] = {}
    for length in range(-(-longest // TILE) * TILE, LONGEST + 1, TILE):
        schedule = Schedule(tables, samples, length=length, seed=seed)
        rows = schedule.rows_needed(range(_TRIED))
        slots[length] = rows * length
        if rows == 1:
            break
    return next(length for length, n in slots.items() if n <= 1.1 * min(slots.values()))


def _has_records(directory: Path) -> bool:
    return bool(read_json(directory / "manifest.json")["kinds"])
