"""`janus-jax data inspect`: what a packed data set holds, in numbers and in one picture."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from janus_jax.errors import InputError
from janus_jax.processing.image import load_image
from janus_jax.processing.prompt import Roles, Turn, chat_prompt, generation_prompt
from janus_jax.processing.tokenizer import Tokenizer
from train.data.records.record import Record
from train.data.records.shards import RecordSet

_TILE, _COLUMNS, _LABEL = 128, 6, 28


def sample_indices(size: int, wanted: int, seed: int) -> list[int]:
    """`wanted` numbers below `size`, or all of them, in ascending order."""
    if wanted >= size:
        return list(range(size))
    return sorted(np.random.default_rng(seed).choice(size, wanted, replace=False).tolist())


def inspect(
    data: RecordSet,
    *,
    samples: int,
    seed: int = 0,
    tokenizer: Tokenizer,
    roles: Roles,
    system_prompt: str,
    num_image_tokens: tuple[int, int],
) -> dict[str, Any]:
    """Counts over the whole data set; sizes and lengths over a sample of each kind.

    Args:
      data: the data set.
      samples: records of each kind to look into.
      seed: which ones.
      tokenizer: measures the lengths.
      roles: speaker names of the prompts.
      system_prompt: of the conversations.
      num_image_tokens: tokens of a picture that is read, and of one that is drawn.

    Returns:
      JSON types: for each kind `records`, `bytes`, and of the sampled records `tokens` and
      `picture_sides` (min, median, max), the broken ones by reason.
    """
    report: dict[str, Any] = {"kinds": {}, "broken": dict(data.manifest["broken"])}
    for kind, records in data.kinds.items():
        chosen = sample_indices(len(records), samples, seed)
        lengths: list[int] = []
        sides: list[int] = []
        unreadable: dict[str, str] = {}
        for i in chosen:
            try:
                record = records[i]
                sides += [side for picture in record.images for side in load_image(picture).size]
                lengths.append(_tokens(record, tokenizer, roles, system_prompt, num_image_tokens))
            except InputError as error:
                unreadable[f"{kind}[{i}]"] = str(error)
        report["kinds"][kind] = {
            "records": len(records),
            "bytes": data.manifest["kinds"][kind]["bytes"],
            "sampled": len(chosen),
            "tokens": _spread(lengths),
            "picture_sides": _spread(sides),
            "unreadable": unreadable,
        }
    return report


def _tokens(
    record: Record,
    tokenizer: Tokenizer,
    roles: Roles,
    system_prompt: str,
    num_image_tokens: tuple[int, int],
) -> int:
    read, drawn = num_image_tokens
    if record.kind == "generation":
        return len(generation_prompt(tokenizer, record.caption, roles=roles)) + drawn
    turns = [Turn(*turn) for turn in record.turns]  # type: ignore[arg-type]
    if record.images:
        first = record.turns[0]
        turns[0] = Turn(first[0], first[1], num_images=len(record.images))  # type: ignore[arg-type]
    prompt = chat_prompt(tokenizer, turns, roles=roles, system=system_prompt, num_image_tokens=read)
    return len(prompt.ids)


def _spread(values: Sequence[int]) -> dict[str, int] | None:
    if not values:
        return None
    low, middle, high = np.percentile(values, [0, 50, 100], method="nearest").astype(int).tolist()
    return {"min": low, "median": middle, "max": high}


def contact_sheet(data: RecordSet, path: Path, *, pictures: int = 36, seed: int = 0) -> int:
    """Draws a sample of the pictures with their captions or answers.

    Args:
      data: the data set.
      path: PNG to write.
      pictures: how many, shared among the kinds.
      seed: which ones.

    Returns:
      Pictures drawn.

    Raises:
      InputError: there are no pictures, or the file cannot be written.
    """
    found = list(_pictures(data, pictures, seed))
    if not found:
        raise InputError(f"{str(data.directory)!r} holds no pictures to show")
    rows = -(-len(found) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _TILE, rows * (_TILE + _LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (record, picture) in enumerate(found):
        x, y = i % _COLUMNS * _TILE, i // _COLUMNS * (_TILE + _LABEL)
        picture.thumbnail((_TILE - 4, _TILE - 4))
        sheet.paste(picture, (x + (_TILE - picture.width) // 2, y + (_TILE - picture.height) // 2))
        label = record.caption or record.turns[-1][1]
        for line in range(2):
            text = label[20 * line : 20 * line + 20]
            draw.text((x + 4, y + _TILE + 12 * line), text, fill="black", font_size=11)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    try:
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise InputError(
            f"--sheet {str(path)!r} cannot be written ({error.strerror})", fix="choose another"
        ) from error
    return len(found)


def _pictures(data: RecordSet, wanted: int, seed: int) -> Iterator[tuple[Record, Image.Image]]:
    with_pictures = [records for kind, records in data.kinds.items() if kind != "text"]
    for records in with_pictures:
        for i in sample_indices(len(records), wanted // len(with_pictures), seed):
            record = records[i]
            if record.images:
                yield record, load_image(record.images[0])
