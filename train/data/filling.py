"""How many samples fill a step whose rows are given."""

from __future__ import annotations

from collections.abc import Mapping

from janus_jax.errors import InputError
from train.data.packing import Kind
from train.data.schedule import LengthTable, Schedule

# Steps that are packed to see whether their samples fit; the strata make all steps alike.
_TRIED = 8


def samples_that_fill(
    tables: Mapping[Kind, LengthTable],
    mixture: Mapping[Kind, int],
    *,
    rows: int,
    length: int,
    seed: int,
) -> dict[Kind, int]:
    """The largest multiple of a ratio whose samples fit into the rows of a step.

    Args:
      tables: lengths of the samples of each kind.
      mixture: parts of each kind.
      rows: rows of a step.
      length: slots of a row.
      seed: seed of the order.

    Returns:
      Samples of each kind in a step.

    Raises:
      InputError: not one of each part fits.
    """
    kinds: dict[Kind, int] = {kind: n for kind, n in mixture.items() if n}
    usable = {kind: tables[kind].tokens[tables[kind].tokens > 0] for kind in kinds}
    mean = sum(n * float(usable[kind].mean()) for kind, n in kinds.items())
    times = int(rows * length / mean)
    while times > 0:
        samples: dict[Kind, int] = {kind: times * n for kind, n in kinds.items()}
        if all(samples[kind] <= len(usable[kind]) for kind in kinds):
            schedule = Schedule(tables, samples, length=length, seed=seed)
            if schedule.rows_needed(range(_TRIED)) <= rows:
                return samples
        times -= 1
    ratio = ":".join(map(str, kinds.values()))
    raise InputError(
        f"--rows {rows} of {length} tokens do not hold samples of {', '.join(kinds)} at {ratio}",
        fix="take more rows, or other samples",
    )
