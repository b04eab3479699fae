"""How many samples fill a step whose rows are given."""

from __future__ import annotations

import bisect
from collections.abc import Mapping

from janus_jax.errors import InputError
from train.data.packing import Kind, fit
from train.data.schedule import LengthTable, Schedule

# Steps that are packed beside the longest one that there can be.
_TRIED = 8


def samples_that_fill(
    tables: Mapping[Kind, LengthTable],
    mixture: Mapping[Kind, int],
    *,
    rows: int,
    length: int,
    seed: int,
) -> dict[Kind, int]:
    """The largest multiple of a ratio whose samples fit into the rows of a step, of every step.

    A step that took one row more would have another row on every device, and be compiled anew. So
    the longest step that the strata could ever give has to fit (`Schedule.longest`). Real ones are
    shorter by up to a row for each kind, for a stratum's samples are shorter than its longest.

    Args:
      tables: lengths of the samples of each kind.
      mixture: parts of each kind.
      rows: rows of a step.
      length: slots of a row.
      seed: seed of the order.

    Returns:
      Samples of each kind in a step.

    Raises:
      InputError: there is not one of each part, or they do not fit.
    """
    kinds: dict[Kind, int] = {kind: n for kind, n in mixture.items() if n}

    def schedule(times: int) -> Schedule:
        samples: dict[Kind, int] = {kind: times * n for kind, n in kinds.items()}
        return Schedule(tables, samples, length=length, seed=seed)

    schedule(1)  # refuses a kind that has too few samples, or none at all
    usable = {kind: tables[kind].tokens[tables[kind].tokens > 0] for kind in kinds}
    mean = sum(n * float(usable[kind].mean()) for kind, n in kinds.items())
    most = min(int(rows * length / mean), *(len(usable[kind]) // n for kind, n in kinds.items()))
    times = bisect.bisect_right(
        range(1, most + 1), rows, key=lambda n: len(fit(schedule(n).longest(), length, rows))
    )
    while times and schedule(times).rows_needed(range(_TRIED), rows) > rows:
        times -= 1
    if times:
        return {kind: times * n for kind, n in kinds.items()}
    ratio = ":".join(map(str, kinds.values()))
    raise InputError(
        f"--rows {rows} of {length} tokens do not hold samples of {', '.join(kinds)} at {ratio}",
        fix="take more rows, or other samples",
    )
