"""Packed data sets made of records given as such, and what prepares them."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from janus_jax.processing.image import ImageSettings
from janus_jax.processing.prompt import JANUS_PRO
from janus_jax.processing.settings import ProcessorConfig
from janus_jax.processing.tokenizer import train_bpe
from train.data.records.prepare import Preparation
from train.data.records.record import Record
from train.data.records.shards import ShardWriter, begin, write_manifest

TOKENIZER = train_bpe(["what is it? a red apple, a blue heart"] * 4, 300)
PROCESSOR = ProcessorConfig(ImageSettings(image_size=16, min_size=2), JANUS_PRO, "Be brief.")
IMAGE_TOKENS, CODEBOOK_SIZE = 4, 64
PREPARATION = Preparation(TOKENIZER, PROCESSOR, IMAGE_TOKENS, CODEBOOK_SIZE)


def picture(i: int, size: tuple[int, int] = (12, 8), format: str = "PNG") -> bytes:
    """A picture of one colour, a function of i."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (i % 256, i // 256 % 256, 99)).save(buffer, format)
    return buffer.getvalue()


def understanding(i: int, **fields) -> Record:
    turns = (("user", "what is it?"), ("assistant", f"a red {i}"))
    images = fields.pop("images", (picture(i),))
    return Record(f"u{i}", "understanding", images, turns=turns, **fields)


def text(i: int, rounds: int = 1) -> Record:
    turns = tuple(
        turn for k in range(rounds) for turn in (("user", f"what is {k}?"), ("assistant", f"a {i}"))
    )
    return Record(f"t{i}", "text", turns=turns)


def generation(i: int, caption: str | None = None) -> Record:
    codes = np.array([i // 64**3 % 64, i // 64**2 % 64, i // 64 % 64, i % 64], np.int32)
    return Record(f"g{i}", "generation", caption=caption or f"a heart {i}", codes=codes)


def write_set(folder: Path, records: Iterable[Record | tuple[str, bytes]]) -> Path:
    """Writes a data set of two units; (kind, bytes) is an entry whatever its bytes are."""
    begin(folder, {"test": str(folder)}, overwrite=True)
    items = list(records)
    half = -(-len(items) // 2)
    units = []
    for unit, some in enumerate((items[:half], items[half:])):
        writers: dict[str, ShardWriter] = {}
        for item in some:
            kind = item.kind if isinstance(item, Record) else item[0]
            if kind not in writers:
                writers[kind] = ShardWriter(folder / kind / f"{unit:05d}.array_record")
            if isinstance(item, Record):
                writers[kind].write(item)
            else:
                writers[kind]._writer.write(item[1])
                writers[kind].records += 1
        units.append({"shards": {k: w.publish() for k, w in writers.items()}, "broken": []})
    write_manifest(folder, units)
    return folder
