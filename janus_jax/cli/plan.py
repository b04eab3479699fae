"""``janus-jax plan``: hands its arguments to the planner.

Like ``train``, it takes the fields of presets as flags, and only the `train` package knows those.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Plan:
    """Say what a training preset needs of a pod: memory, FLOPs, days, and the compiled step.

    Usage: janus-jax plan PRESET [--topology T] [--compile] [--json] [--any.field VALUE ...]

    `janus-jax plan --help` lists the presets, `janus-jax plan PRESET --help` all flags.
    """


def run(argv: Sequence[str]) -> int:
    """Runs the planner.

    Args:
        argv: Everything after ``janus-jax plan``.

    Returns:
        The exit status, 0.

    Raises:
        InputError: an unknown preset, flag or value, a missing compiler, or a step that does not
            fit into the chips' memory.
    """
    from train.plan.cli import main

    return main(list(argv))
