"""One debug-sized data set and model for all training tests, and cheap compilation.

Nothing here depends on how well a program is optimised, and compiling takes most of the time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

from janus_jax.config import DEBUG
from janus_jax.functional import abstract
from janus_jax.models.janus import JanusModel
from tests.debug_model import random_params
from tests.train.runs import tiny
from train.cli import run_recipe
from train.config import TrainConfig
from train.data.samples import EmojiData
from train.presets import EMOJI_RECIPE


@pytest.fixture(scope="session", autouse=True)
def quick_compilation() -> Iterator[None]:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def make_data(config: TrainConfig, split: str = "train") -> EmojiData:
    return EmojiData(
        config,
        image_size=DEBUG.image_size,
        num_image_tokens=DEBUG.vision.num_patches,
        vocab_size=DEBUG.llm.vocab_size,
        split=split,
    )


@pytest.fixture(scope="session")
def data() -> EmojiData:
    """The training split for stage 3, with fake image codes 0, 1, 2, ... in `codes`."""
    return make_data(tiny("emoji-stage3", batch_size=20, seed=3))


@pytest.fixture(scope="session")
def codes(data: EmojiData) -> np.ndarray:
    """Image tokens that tell which record they belong to: the record's number in base 64."""
    numbers = np.arange(len(data.records))
    tokens = np.tile(np.arange(16, dtype=np.int32) % 64, (len(numbers), 1))
    tokens[:, 0], tokens[:, 1] = numbers // 64, numbers % 64
    return tokens


@pytest.fixture(scope="session")
def model() -> JanusModel:
    """A debug model, used eagerly or closed over; its parameters never change."""
    graphdef, _ = abstract(DEBUG)
    return nnx.merge(graphdef, random_params(DEBUG))


class Recipe(NamedTuple):
    root: Path
    runs: tuple[TrainConfig, ...]


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """All six real presets on the debug model, one step each; stage 3 also draws."""
    root = tmp_path_factory.mktemp("recipe")
    runs = tuple(
        tiny(preset.name, steps=1, preview_every=int(preset.name == "emoji-stage3"))
        for preset in EMOJI_RECIPE
    )
    assert run_recipe(runs, root, overwrite=False) == 0
    return Recipe(root, runs)
