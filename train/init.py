"""What a run begins with: parameters, vocabulary and architecture of earlier runs and of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from janus_jax.config import JanusConfig, get_config
from janus_jax.errors import InputError
from janus_jax.functional import abstract
from janus_jax.hosts import is_first
from janus_jax.locate import find_model, is_model
from janus_jax.manifest import read_json, write_text
from janus_jax.params_io import restore_params
from janus_jax.processing.settings import EMOJI_PROCESSOR, ProcessorConfig
from janus_jax.processing.tokenizer import Tokenizer
from janus_jax.sharding import param_shardings
from train import rundir
from train.config import PARTS, TrainConfig
from train.data.records.prepare import Preparation
from train.data.samples import emoji_tokenizer
from train.state import stored

TOKENIZER, PROCESSOR = "tokenizer.json", "preprocessor.json"


@dataclass(frozen=True)
class Origin:
    """What a run is about beside its numbers.

    Attributes:
      model: the architecture.
      tokenizer: the vocabulary.
      processor: image settings, role names and system prompt.
    """

    model: JanusConfig
    tokenizer: Tokenizer
    processor: ProcessorConfig

    def preparation(self) -> Preparation:
        """How records become samples, as far as their lengths go."""
        model = self.model
        return Preparation(
            self.tokenizer, self.processor, model.num_image_tokens, model.vq.codebook_size
        )


def find_origin(config: TrainConfig, run_dir: Path) -> Origin:
    """Architecture, vocabulary and processor of a run.

    A run on record data takes the last two from what it starts from, and keeps a copy, from which
    it resumes and which the runs that start from it find.

    Raises:
      InputError: an unknown architecture, or nothing that the run starts from has them.
    """
    sources: list[Path] = []
    # A run on the emoji drawings of a named architecture needs nothing of where it starts from.
    if config.data or not config.model:
        names = dict.fromkeys(config.initial_runs().values())
        sources = [source_directory(name, run_dir) for name in names]
    if config.model:
        model = get_config(config.model)
    else:
        models = [s for s in sources if is_model(s)]
        if not models:
            raise InputError(
                "--model is missing, and --init names no model directory to take it from",
                fix="add --model janus-pro-1b, or --init MODEL",
            )
        model = JanusConfig.from_json(read_json(models[0] / "config.json"))
    if not config.data:
        tokenizer = emoji_tokenizer(model.llm.vocab_size)
        return Origin(model, tokenizer, _sized(EMOJI_PROCESSOR, model))
    for source in (run_dir, *sources):
        if (source / TOKENIZER).is_file() and (source / PROCESSOR).is_file():
            tokenizer = Tokenizer.from_file(source / TOKENIZER)
            processor = _sized(ProcessorConfig.load(source / PROCESSOR), model)
            if source != run_dir and is_first():
                # Whole at once: the other processes look for them now, and a resumed run later.
                write_text(run_dir / TOKENIZER, tokenizer.to_json())
                write_text(run_dir / PROCESSOR, processor.to_json())
            return Origin(model, tokenizer, processor)
    raise InputError(
        f"nothing that the run starts from has a {TOKENIZER} and a {PROCESSOR}",
        fix="add a model directory to --init, such as one that `janus-jax assemble` writes",
    )


def _sized(processor: ProcessorConfig, model: JanusConfig) -> ProcessorConfig:
    """A processor that makes pictures of the model's size."""
    image = dataclasses.replace(processor.image, image_size=model.image_size)
    return dataclasses.replace(processor, image=image)


def source_directory(name: str, run_dir: Path) -> Path:
    """The run beside `run_dir`, the directory, or the model that an `init` entry names.

    Raises:
      InputError: there is none.
    """
    beside = run_dir.parent / name
    if is_model(beside) or rundir.is_finished(beside):
        return beside
    try:
        return find_model(name)
    except InputError as error:
        raise InputError(
            f"--init {name}: {beside} holds no finished run and no model, and {error.what}",
            error.allowed,
            f"train {name} first, or name another run or a model",
        ) from error


def initial_parts(
    config: TrainConfig,
    run_dir: Path,
    model: JanusConfig,
    mesh: Mesh | None,
    wanted: Collection[str],
) -> dict[str, nnx.State]:
    """Parts that come from earlier runs, or from model directories.

    Args:
      config: the preset; its `init` says `part=run`.
      run_dir: this run's directory; runs are looked for beside it.
      model: the architecture.
      mesh: where the parameters go, but for the tokenizer's; None: to the default device.
      wanted: parts to read, those that `init` does not name left out.

    Returns:
      For each part its parameters, a layer at a time as they are on disk; those of the tokenizer,
      which every process reads and uses by itself, on its default device.

    Raises:
      InputError: a run without a result, or without that part.
    """
    # One restore for each run, whatever the number of its parts used.
    sources: dict[str, list[str]] = {}
    for part, name in config.initial_runs().items():
        if part in wanted:
            sources.setdefault(name, []).append(part)
    loaded: dict[str, nnx.State] = {}
    shapes = abstract(model)[1]
    for name, parts in sources.items():
        directory = source_directory(name, run_dir)
        have = list(PARTS)
        if not is_model(directory):
            have = rundir.read_json(directory / "done").get("parts", [])
        missing = sorted(set(parts) - set(have))
        if missing:
            raise InputError(f"--init {missing[0]}={name}: that run has only {', '.join(have)}")
        # A process needs no other one to read the tokenizer.
        own = [part for part in parts if part == "vq"]
        spread = [part for part in parts if part != "vq"]
        for some, over in ((own, None), (spread, mesh)):
            if some:
                like = stored(nnx.State({part: shapes[part] for part in some}), config)
                where = param_shardings(like, over) if over else None
                loaded |= dict(restore_params(directory / "params", like, where, partial=True))
    return loaded
