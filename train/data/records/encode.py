"""`janus-jax data encode`: adds the image tokens to the generation records of a packed data set.

Training on pre-encoded pictures needs neither their pixels nor the VQ tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from janus_jax.errors import InputError
from janus_jax.functional import GraphDef, Params
from janus_jax.manifest import read_json, write_json
from janus_jax.processing.image import generation_pixels, load_image
from janus_jax.sharding import constrain, on_mesh
from train.data.records.record import Record
from train.data.records.shards import (
    ShardWriter,
    begin,
    open_records,
    read_manifest,
    write_manifest,
)

Progress = Callable[[int, int], None]
BATCH = 16


def encode(
    source: Path,
    out: Path,
    graphdef: GraphDef,
    params: Params,
    *,
    image_size: int,
    fingerprint: str,
    keep_images: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Encodes a data set; the same call goes on after a stop.

    Args:
      source: a packed data set.
      out: directory of the encoded one, which holds the generation records only: its own source of
        a mixture, beside the others.
      graphdef: static part of the model.
      params: its parameters, on any mesh.
      image_size: side of its pictures, pixels.
      fingerprint: identifies the model's weights.
      keep_images: keep the pictures' files beside the tokens.
      overwrite: delete a data set that is there.
      progress: called with (records done, records in all).

    Returns:
      The manifest.

    Raises:
      InputError: no generation records, or `out` was begun from other data or with another model.
    """
    records = open_records(source).kinds.get("generation")
    if not records:
        raise InputError(f"{str(source)!r} holds no generation records to encode")
    shards = read_manifest(source)["kinds"]["generation"]["shards"]
    plan = {"shards": shards, "model": fingerprint, "keep_images": keep_images}
    begin(out, plan, overwrite)
    run = _encoder(graphdef, params, image_size)
    done, units = 0, []
    for i, shard in enumerate(shards):
        unit = out / "units" / f"{i:05d}.json"
        if not unit.is_file():
            writer = ShardWriter(out / "generation" / f"{i:05d}.array_record")
            for start in range(done, done + shard["records"], BATCH):
                stop = min(start + BATCH, done + shard["records"])
                for record in run([records[k] for k in range(start, stop)], keep_images):
                    writer.write(record)
                if progress:
                    progress(stop, len(records))
            write_json(unit, {"shards": {"generation": writer.publish()}, "broken": []})
        done += shard["records"]
        units.append(read_json(unit))
    return write_manifest(out, units, source=[str(source)], model=fingerprint)


def _encoder(
    graphdef: GraphDef, params: Params, image_size: int
) -> Callable[[Sequence[Record], bool], list[Record]]:
    """The compiled encoder over records; every batch has the same size, so it compiles once.

    Over a mesh the pictures of a batch are spread over its devices.
    """

    @jax.jit
    def codes_of(params: Params, pixels: jax.Array) -> jax.Array:
        pixels = constrain(pixels, "batch", None, None, None)
        return constrain(nnx.merge(graphdef, params).vq_encode(pixels), None, None)

    def run(records: Sequence[Record], keep_images: bool) -> list[Record]:
        pixels = np.zeros((BATCH, image_size, image_size, 3), np.float32)
        for i, record in enumerate(records):
            pixels[i] = generation_pixels(load_image(record.images[0]), image_size)
        with on_mesh(params):
            codes = np.asarray(codes_of(params, pixels))
        encoded = [r.with_codes(codes[i]) for i, r in enumerate(records)]
        if keep_images:
            return encoded
        return [Record(r.id, r.kind, caption=r.caption, codes=r.codes) for r in encoded]

    return run
