"""Published sizes, the JSON form and refusals. Everything is abstract: no memory, any size."""

import copy
import dataclasses
import json

import pytest

from janus_jax import functional
from janus_jax.config import (
    DEBUG,
    JANUS_1_3B,
    JANUS_PRO_1B,
    JANUS_PRO_7B,
    NAMED,
    JanusConfig,
    get_config,
)
from janus_jax.errors import InputError


def counts(config: JanusConfig) -> dict[str, int]:
    """Parameters of each component; the adaptors hold both aligners, gen_embed and image head."""
    groups = {"llm": "llm", "vision": "siglip", "vq": "vq"}
    found: dict[str, int] = {}
    for path, leaf in functional.flat_params(functional.abstract(config)[1]).items():
        group = groups.get(path.split("/")[0], "adaptors")
        found[group] = found.get(group, 0) + leaf.size
    return found


@pytest.mark.parametrize(
    ("config", "exact", "billions"),
    [
        (
            JANUS_PRO_1B,
            {"llm": 1652656128, "siglip": 303688704, "adaptors": 48408576, "vq": 71883403},
            {"llm": 1.653, "siglip": 0.304, "adaptors": 0.048, "vq": 0.072},
        ),
        (
            JANUS_PRO_7B,
            {"llm": 6910365696, "siglip": 303688704, "adaptors": 121835520, "vq": 71883403},
            {"llm": 6.910, "siglip": 0.304, "adaptors": 0.122, "vq": 0.072},
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_published_parameter_counts(config: JanusConfig, exact: dict, billions: dict):
    found = counts(config)
    assert found == exact
    assert {name: round(n / 1e9, 3) for name, n in found.items()} == billions


def test_janus_1_3b_has_the_architecture_of_pro_1b():
    assert dataclasses.replace(JANUS_1_3B, name="janus-pro-1b") == JANUS_PRO_1B
    total = functional.count_params(functional.abstract(JANUS_1_3B)[1])
    assert total == sum(counts(JANUS_PRO_1B).values()) == 2076636811


def test_published_grids():
    assert (JANUS_PRO_7B.image_size, JANUS_PRO_7B.grid, JANUS_PRO_7B.num_image_tokens) == (
        384,
        24,
        576,
    )
    assert JANUS_PRO_7B.vision.num_patches == 576 and JANUS_PRO_7B.vq.downsample == 16


@pytest.mark.parametrize("config", NAMED.values(), ids=lambda config: config.name)
def test_json_round_trip(config: JanusConfig):
    assert JanusConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert get_config(config.name) is config


def test_unknown_name_lists_the_names():
    with pytest.raises(InputError, match=r"'janus-2b'.*janus-1.3b, janus-pro-1b"):
        get_config("janus-2b")


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        (("janus_jax_config",), 2, "version 2"),
        (("janus_jax_config",), None, "version"),
        (("llm", "width"), "48", "LlamaConfig.width"),
        (("llm", "width"), 48.0, "LlamaConfig.width"),
        (("llm", "depth"), True, "LlamaConfig.depth"),
        (("llm", "surprise"), 1, "surprise"),
        (("surprise",), 1, "surprise"),
        (("vq", "channel_multipliers"), 3, "config.json"),
        (("vision",), [1], "config.json"),
        (("vision", "patch_size"), 5, "vision.image_size is 16"),
        (("vision", "patch_size"), 0, "vision.image_size is 16"),
        (("vision", "num_heads"), 3, "vision.width is 32"),
        (("vq", "base_channels"), 48, "vq.base_channels is 48"),
        (("llm", "num_kv_heads"), 2, "llm.num_heads is 3"),
        (("llm", "head_dim"), 15, "llm.head_dim is 15"),
    ],
)
def test_what_is_refused_and_named(where: tuple[str, ...], value, words: str):
    data = copy.deepcopy(json.loads(json.dumps(DEBUG.to_json())))
    section = data
    for key in where[:-1]:
        section = section[key]
    section[where[-1]] = value
    with pytest.raises(InputError) as info:
        JanusConfig.from_json(data)
    assert words in str(info.value)


@pytest.mark.parametrize(
    "where", [("name",), ("llm",), ("llm", "rope_theta"), ("vq", "codebook_dim")]
)
def test_what_is_missing_is_refused_and_named(where: tuple[str, ...]):
    data = json.loads(json.dumps(DEBUG.to_json()))
    section = data
    for key in where[:-1]:
        section = section[key]
    del section[where[-1]]
    with pytest.raises(InputError, match=where[-1]):
        JanusConfig.from_json(data)


def test_integers_may_stand_for_floats():
    data = DEBUG.to_json()
    data["llm"]["rope_theta"] = 10000
    assert JanusConfig.from_json(data) == DEBUG
