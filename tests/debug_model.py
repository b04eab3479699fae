"""A `debug` model with random weights, made without compiling an initialiser."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from janus_jax import functional
from janus_jax.checkpoint import LoadedModel, load_model, save_model
from janus_jax.config import DEBUG, JanusConfig
from janus_jax.processing import EMOJI_PROCESSOR, ProcessorConfig
from tests.processing.fakes import emoji_like

CARD = "# Debug\n\nRandom weights.\n"


def random_params(config: JanusConfig, seed: int = 0) -> nnx.State:
    """Weights of unit gain, so that activations and logits are of ordinary size."""
    rng = np.random.default_rng(seed)

    def one(path, variable):
        shape, kind = tuple(variable.shape), str(path[-1])
        values = rng.standard_normal(shape, np.float32)
        if kind == "kernel":
            values /= np.sqrt(np.prod(shape[:-1]))
        elif kind in ("bias", "scale"):
            values = 0.1 * values + (kind == "scale")
        return variable.replace(jnp.asarray(values))

    return nnx.map_state(one, functional.abstract(config)[1])


def processor(config: JanusConfig) -> ProcessorConfig:
    image = dataclasses.replace(EMOJI_PROCESSOR.image, image_size=config.image_size)
    return dataclasses.replace(EMOJI_PROCESSOR, image=image)


def write(path: Path, config: JanusConfig = DEBUG) -> None:
    """Saves a model directory."""
    save_model(
        path,
        config,
        random_params(config),
        emoji_like(),
        processor(config),
        card_text=CARD,
        dtype="bfloat16",
        source="tests",
    )


def load(path: Path) -> LoadedModel:
    """Loads it in float32, whatever the backend."""
    return load_model(path, dtype="float32")
