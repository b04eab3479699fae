"""A preset with changes, from the command line: what `train` and `plan` have in common."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

import tyro

from janus_jax.cli.parsing import parse
from janus_jax.errors import InputError
from train.config import TrainConfig
from train.described import description

Flags = TypeVar("Flags")


def parse_preset(
    flags: Flags,
    argv: list[str],
    presets: Mapping[str, TrainConfig],
    *,
    command: str,
    others: tuple[str, ...] = (),
) -> tuple[Flags, TrainConfig]:
    """Reads a preset's name, then a command's own flags and the preset's fields in any order.

    Args:
      flags: the command's flags as they are by default, a dataclass.
      argv: arguments after the command.
      presets: the presets that it takes.
      command: its name, for messages.
      others: other names that it takes, for messages.

    Returns:
      The flags and the resolved preset.

    Raises:
      InputError: an unknown preset, flag or value.
    """
    name, rest = argv[0], argv[1:]
    if name not in presets:
        known = [*others, *presets]
        nearest = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else ""
        raise InputError(f"unknown preset {name!r}", ", ".join(known), hint)
    # Without a name of their own, so that flags read --steps and --optimizer.learning-rate.
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [
            ("flags", Annotated[type(flags), tyro.conf.arg(name="")]),
            ("config", Annotated[TrainConfig, tyro.conf.arg(name="")]),
        ],
        frozen=True,
    )
    arguments.__doc__ = description(name)
    default = arguments(flags, presets[name])
    found: Any = parse(arguments, rest, prog=f"janus-jax {command} {name}", default=default)
    return cast(Flags, found.flags), found.config
