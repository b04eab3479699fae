"""Sample pictures of a run in progress, as PNG grids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from janus_jax.generate.image import decode_codes, generate_codes
from janus_jax.generate.sampling import Sampling
from janus_jax.processing.image import to_uint8
from janus_jax.processing.settings import EMOJI_PROCESSOR
from train.data.emoji import load_emoji, load_pictures
from train.data.samples import emoji_tokenizer
from train.task import Task

COUNT = 16


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


def save_preview(model: Any, task: Task, path: Path) -> None:
    """Draws what the model can do now: true pictures above, the model's below.

    A tokenizer shows reconstructions; a whole model draws the names. The first row pair is of the
    training split, the second held out: always the first ones, never chosen ones. SigLIP alone has
    nothing to show.
    """
    if not hasattr(model, "vq"):
        return
    rows = []
    for split in ("train", "heldout"):
        # Every 13th, so that the sheet is not sixteen tones of one hand.
        records = [e for e in load_emoji() if e.split == split][::13][:COUNT]
        pictures = load_pictures(records, task.config.image_size)
        if hasattr(model, "llm"):
            drawn = draw(model, task, [e.name for e in records])
        else:
            drawn = reconstruct(model.vq, pictures)
        rows += [pictures, drawn]
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(rows).save(path)


def draw(model: Any, task: Task, names: Sequence[str]) -> np.ndarray:
    """One picture of each name, seed 0, guided as by default: uint8 [N, S, S, 3]."""
    graphdef, params = nnx.split(model)
    codes = generate_codes(
        graphdef,
        params,
        task.config,
        emoji_tokenizer(task.config.llm.vocab_size),
        EMOJI_PROCESSOR.roles,
        names,
        n=1,
        cfg=5.0,
        how=Sampling(np.float32(1.0)),
        seed=0,
        # One by one: a batch of any other number would be another program to compile.
        max_pictures=1,
    )
    return to_uint8(decode_codes(graphdef, params, codes[:, 0]))


def reconstruct(vq: Any, pictures: np.ndarray) -> np.ndarray:
    """Pictures after the tokenizer: uint8 [N, S, S, 3] -> the same."""
    graphdef, params = nnx.split(vq)

    @jax.jit
    def run(params: nnx.State, pixels: jax.Array) -> jax.Array:
        tokenizer = nnx.merge(graphdef, params)
        return tokenizer.decode(tokenizer.encode(pixels))

    return to_uint8(np.asarray(run(params, jnp.asarray(pictures, jnp.float32) / 127.5 - 1.0)))
