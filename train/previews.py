"""Sample pictures of a run in progress, as PNG grids."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from janus_jax import functional
from janus_jax.config import JanusConfig
from janus_jax.generate.image import decode_codes, generate_codes
from janus_jax.generate.sampling import Sampling
from janus_jax.hosts import is_first
from janus_jax.models.janus import JanusModel
from janus_jax.nn.layers import ShapesOnly
from janus_jax.processing.image import to_uint8
from janus_jax.processing.prompt import Roles
from janus_jax.processing.settings import EMOJI_PROCESSOR
from janus_jax.processing.tokenizer import Tokenizer
from janus_jax.sharding import constrain, on_mesh
from train.data.emoji import load_emoji, load_pictures
from train.data.mixture import parse_data
from train.data.records.shards import open_records
from train.data.samples import emoji_tokenizer
from train.init import Origin

COUNT = 16
GUIDANCE = 5.0
SEED = 0


def grid(rows: Sequence[np.ndarray], *, scale: int = 2, margin: int = 2) -> Image.Image:
    """Lays out pictures in rows.

    Args:
      rows: each uint8 [N, S, S, 3].
      scale: whole-number enlargement.
      margin: white pixels between pictures, before enlargement.

    Returns:
      The sheet, RGB.
    """
    size = rows[0].shape[1] + margin
    sheet = np.full((len(rows) * size, max(map(len, rows)) * size, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * size, x * size
            sheet[top : top + size - margin, left : left + size - margin] = picture
    image = Image.fromarray(sheet)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


@dataclass(frozen=True, eq=False)
class Examples:
    """Captions of a run's own data sets, with what they are captions of.

    Attributes:
      tokenizer: the model's.
      roles: its role names.
      captions: of each split, in order.
      codes: int32 [N, P], the pictures of all captions as image tokens.
    """

    tokenizer: Tokenizer
    roles: Roles
    captions: dict[str, list[str]]
    codes: np.ndarray


def find_examples(origin: Origin, data: Mapping[str, Sequence[str]]) -> Examples | None:
    """The first pictures to draw of packed data sets, by split; None where there are none."""
    captions: dict[str, list[str]] = {}
    codes: list[np.ndarray] = []
    for split, names in data.items():
        sets = [open_records(s.directory) for s in parse_data(names)] if names else []
        records = [r for s in sets for r in s.kinds.get("generation", ())[: COUNT // 2]]
        found = [r for r in records if r.codes is not None][: COUNT // 2]
        if found:
            captions[f"{split} captions"] = [r.caption for r in found]
            codes += [r.codes for r in found if r.codes is not None]
    if not codes:
        return None
    return Examples(origin.tokenizer, origin.processor.roles, captions, np.stack(codes))


def save_preview(
    params: nnx.State, config: JanusConfig, path: Path, examples: Examples | None = None
) -> dict[str, list[str]] | None:
    """Draws what the model can do now: true pictures above, the model's below.

    A tokenizer shows reconstructions; a whole model draws the names. The first row pair is of the
    training split, the second held out: always the same ones, never chosen ones. What has no
    tokenizer has nothing to show.

    Args:
      params: the parameters there are, as they are on disk.
      config: the architecture.
      path: the PNG to write; its directory is made. Of several processes, which all have to draw,
        the first one writes.
      examples: of a run on other data; their true pictures are shown as the tokenizer keeps them.

    Returns:
      The names of the pictures by split, in order; None where there is nothing to show.
    """
    if "vq" not in params:
        return None
    if examples is not None:
        _save_examples(params, config, path, examples)
        return examples.captions
    # Every 13th, so that the sheet is not sixteen tones of one hand.
    splits = [
        [e for e in load_emoji() if e.split == split][::13][:COUNT]
        for split in ("train", "heldout")
    ]
    pictures = [load_pictures(records, config.image_size) for records in splits]
    if "llm" in params:
        names = [e.name for records in splits for e in records]
        tokenizer = emoji_tokenizer(config.llm.vocab_size)
        drawn = draw(params, config, names, tokenizer, EMOJI_PROCESSOR.roles)
    else:
        drawn = reconstruct(params["vq"], config, np.concatenate(pictures))
    cut = len(splits[0])
    _write(grid([pictures[0], drawn[:cut], pictures[1], drawn[cut:]]), path)
    return {
        f"{split} names": [e.name for e in records]
        for split, records in zip(("train", "heldout"), splits, strict=True)
    }


def _save_examples(params: nnx.State, config: JanusConfig, path: Path, examples: Examples) -> None:
    captions = [caption for found in examples.captions.values() for caption in found]
    drawn = draw(params, config, captions, examples.tokenizer, examples.roles)
    graphdef = functional.abstract(config)[0]
    true = to_uint8(decode_codes(graphdef, params, examples.codes))
    rows, start = [], 0
    for found in examples.captions.values():
        rows += [part[start : start + len(found)] for part in (true, drawn)]
        start += len(found)
    _write(grid(rows, scale=max(128 // config.image_size, 1)), path)


def _write(sheet: Image.Image, path: Path) -> None:
    if is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)


def reconstruct(params: nnx.State, config: JanusConfig, pictures: np.ndarray) -> np.ndarray:
    """Pictures after the tokenizer: uint8 [N, S, S, 3] -> the same."""
    graphdef = nnx.graphdef(JanusModel(config, ShapesOnly()).vq)
    pixels = np.asarray(pictures, np.float32) / 127.5 - 1.0
    with on_mesh(params):
        return to_uint8(np.asarray(_reconstruct(graphdef, params, pixels)))


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(graphdef: Any, params: Any, pixels: jax.Array) -> jax.Array:
    tokenizer = nnx.merge(graphdef, params)
    # Whole on every device, as every process reads them.
    return constrain(tokenizer.decode(tokenizer.encode(pixels)), None, None, None, None)


def draw(
    params: nnx.State,
    config: JanusConfig,
    names: Sequence[str],
    tokenizer: Tokenizer,
    roles: Roles,
) -> np.ndarray:
    """Pictures of names, guided as `janus-jax generate` guides, always with the same seed.

    Args:
      params: of the whole model.
      config: its architecture.
      names: N names.
      tokenizer: its vocabulary.
      roles: its role names.

    Returns:
      uint8 [N, S, S, 3].
    """
    # Weights of another dtype than the products' would be widened beside the narrow ones.
    dtype = jax.tree.leaves(params["llm"])[0].dtype
    graphdef = functional.abstract(config, dtype=dtype)[0]
    codes = generate_codes(
        graphdef,
        params,
        config,
        tokenizer,
        roles,
        names,
        numbers=[0],
        cfg=GUIDANCE,
        how=Sampling(np.float32(1.0)),
        seed=SEED,
        # One by one: a batch of any other number would be another program to compile.
        at_once=1,
    )
    return to_uint8(decode_codes(graphdef, params, codes[:, 0]))
