"""The architecture of a checkpoint: read from its `config.json`, written beside an export."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.counts import parameter_count
from convert.deepseek_config import from_deepseek_config, to_deepseek_config
from convert.engine import Plan, plan_import, shapes_of
from convert.jsonfile import read_object, write_object
from convert.keys.table import Table
from convert.layouts import Layout
from convert.transforms import Shape
from janus_jax.config import (
    DEBUG,
    EMOJI,
    JANUS_1_3B,
    JANUS_PRO_1B,
    JANUS_PRO_7B,
    JanusConfig,
)
from janus_jax.errors import InputError
from janus_jax.functional import abstract, flat_params
from janus_jax.hf_config import from_hf_config, to_hf_config
from janus_jax.processing.prompt import JANUS, Roles
from janus_jax.processing.tokenizer import Tokenizer


def read_config(directory: Path, layout: Layout) -> JanusConfig:
    """The architecture that the `config.json` of a checkpoint in this layout describes.

    Args:
      directory: holds the file.
      layout: as `convert.layouts.detect` found it.

    Returns:
      The architecture, under its published name where it has one (`janus-pro-1b` for Janus-1.3B
      too, whose sizes are the same; see `named`).

    Raises:
      InputError: missing, malformed, or nothing this package computes; names section and key.
    """
    data = read_object(directory / "config.json")
    read = from_hf_config if layout.config == "hf" else from_deepseek_config
    return named(read(data))


def named(config: JanusConfig, roles: Roles | None = None) -> JanusConfig:
    """The same architecture under its published name, or under its own where it has none.

    Args:
      config: the architecture.
      roles: how its prompts name the speakers, where that is known: Janus-1.3B and Janus-Pro-1B
        have the same sizes and differ in it.
    """
    one_b = JANUS_1_3B if roles == JANUS else JANUS_PRO_1B
    for known in (one_b, JANUS_PRO_7B, EMOJI, DEBUG):
        if dataclasses.replace(config, name=known.name) == known:
            return known
    return config


def write_config(
    directory: Path, layout: Layout, config: JanusConfig, tokenizer: Tokenizer, *, dtype: str
) -> None:
    """Writes the `config.json` of an export.

    Args:
      directory: gets the file.
      layout: of the export.
      config: the architecture.
      tokenizer: where the ids of the special tokens come from.
      dtype: name of the weights' dtype, for example `bfloat16`.

    Raises:
      InputError: the layout cannot express the architecture.
    """
    write_object(directory / "config.json", config_content(layout, config, tokenizer, dtype=dtype))


def config_content(
    layout: Layout, config: JanusConfig, tokenizer: Tokenizer, *, dtype: str
) -> dict[str, Any]:
    """What `write_config` writes; raises as it does."""
    if layout.config == "deepseek":
        return to_deepseek_config(config, dtype=dtype)
    content = to_hf_config(
        config,
        image_token_id=tokenizer.image_placeholder,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pad,
    )
    return {**content, "dtype": dtype}


def plan_whole(config: JanusConfig, table: Table, their_shapes: Mapping[str, Shape]) -> Plan:
    """Checks that a checkpoint's tensors are exactly the model its config describes.

    A config can describe more than any machine holds. What it asks for is compared with what there
    is, by arithmetic, before anything is built from it.

    Args:
      config: the architecture.
      table: the layout.
      their_shapes: shape of every tensor of the checkpoint.

    Raises:
      InputError: the config describes more than twice the numbers that there are.
      MappingError: keys or shapes that do not fit; all of them.
    """
    check_size(parameter_count(config), table, their_shapes)
    return plan_import(table, shapes_of(flat_params(abstract(config)[1])), their_shapes)


def check_size(wanted: int, table: Table, their_shapes: Mapping[str, Shape]) -> None:
    """Refuses a config that describes more than twice the numbers that the tensors hold.

    Below that, the plan says which tensors are missing or have another shape.

    Args:
      wanted: numbers in the parameters that the config describes.
      table: the layout.
      their_shapes: shape of every tensor of the checkpoint.

    Raises:
      InputError: with both numbers.
    """
    held = sum(math.prod(s) for key, s in their_shapes.items() if not table.drops_key(key))
    if wanted > 2 * held:
        raise InputError(
            f"config.json describes a model of {wanted:,} parameters, but the tensors beside it "
            f"hold {held:,}",
            fix="use the config.json that belongs to these files",
        )
