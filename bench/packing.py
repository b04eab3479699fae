"""How much of a packed step is real tokens, on lengths like those of the published recipe.

    python bench/packing.py --json

Stage 3's mix of understanding, text and generation samples, 5:1:4, in rows of 4096. Lengths are
drawn evenly: a picture of 576 tokens and 40 to 300 of conversation, 20 to 1500 of text, 575 input
codes (the last code is only predicted) after a prompt of 10 to 80. A step is packed from its
lengths; every step has the rows of the fullest one, since shapes are fixed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    # Python puts the script's own folder first, where `convert` would be bench/convert.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from train.data.packing import Kind, efficiency
from train.data.schedule import LengthTable, Schedule

LENGTH = 4096
MIX: dict[Kind, int] = {"understanding": 5, "text": 1, "generation": 4}
SAMPLES = 5000


def tables(seed: int) -> dict[Kind, LengthTable]:
    """Lengths of `SAMPLES` samples of each kind."""
    rng = np.random.default_rng(seed)
    talk = rng.integers(40, 301, SAMPLES)
    text = rng.integers(20, 1501, SAMPLES)
    prompts = rng.integers(10, 81, SAMPLES)
    return {
        "understanding": LengthTable(576 + talk, talk // 2),
        "text": LengthTable(text, text // 2),
        "generation": LengthTable(575 + prompts),
    }


def measure(batch_size: int, steps: int, seed: int = 0) -> dict[str, Any]:
    """Packs some steps.

    Args:
      batch_size: samples a step, a multiple of 10.
      steps: steps to pack.
      seed: seed of the lengths and of the order.

    Returns:
      `packing_efficiency` (share of real tokens in the rows of all steps, each step having
      `rows`), the rows themselves and the median host time of a step.
    """
    samples: dict[Kind, int] = {k: n * batch_size // sum(MIX.values()) for k, n in MIX.items()}
    schedule = Schedule(tables(seed), samples, length=LENGTH, seed=seed)
    rows, tokens, seconds = [], [], []
    for step in range(steps):
        start = time.perf_counter()
        rows.append(len(schedule.rows(step)))
        seconds.append(time.perf_counter() - start)
        tokens.append(sum(schedule.lengths(step)))
    return {
        "packing_efficiency": efficiency(tokens, max(rows) * steps, LENGTH),
        "batch_size": batch_size,
        "rows": max(rows),
        "fewest_rows": min(rows),
        "tokens_per_step": statistics.mean(tokens),
        "plan_seconds": statistics.median(seconds),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--batch-size", type=int, default=140, help="samples a step")
    parser.add_argument("--steps", type=int, default=200, help="steps to pack")
    options = parser.parse_args()
    if options.batch_size < 1 or options.batch_size % sum(MIX.values()) or options.steps < 1:
        parser.error("--batch-size must be a multiple of 10, --steps at least 1")
    found = measure(options.batch_size, options.steps)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:20} {value:.6g}")


if __name__ == "__main__":
    main()
