"""``janus-jax data``: hands its arguments to the trainer's data tools.

The import is lazy, as for ``janus-jax train``: the library never depends on the trainer.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Data:
    """Pack, encode and inspect training data, list the samples of a step.

    Usage: janus-jax data {pack,encode,inspect,ids} ...

    `janus-jax data --help` says what each does, `janus-jax data pack --help` its flags.
    """


def run(argv: Sequence[str]) -> int:
    """Runs the data tools.

    Args:
        argv: Everything after ``janus-jax data``.

    Returns:
        The exit status, 0.

    Raises:
        InputError: unusable arguments or data.
    """
    from train.data.records.cli import main

    return main(list(argv))
