"""``janus-jax train``: hands its arguments to the trainer.

Presets are nested dataclasses that only the `train` package knows, so their flags are parsed there.
The import is lazy: the library never depends on the trainer, and ``janus-jax --help`` stays quick.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model from a named preset.

    Usage: janus-jax train PRESET [--run-dir DIR] [--resume | --overwrite] [--any.field VALUE ...]

    `janus-jax train --help` lists the presets, `janus-jax train PRESET --help` a preset's fields.
    """


def run(argv: Sequence[str]) -> int:
    """Runs the trainer.

    Args:
        argv: Everything after ``janus-jax train``.

    Returns:
        The exit status: 0 done, 75 preempted with the state saved (start again with --resume).

    Raises:
        InputError: an unknown preset, field or value, or an unusable run directory.
    """
    from train.cli import main

    return main(list(argv)) or 0
