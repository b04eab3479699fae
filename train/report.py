"""What a run has changed: losses on held-out samples before its first step and after its last."""

from __future__ import annotations

import json
from pathlib import Path

from train.metrics import HELDOUT


def print_heldout(run_dir: Path) -> None:
    """Prints the first and the last losses in `metrics.jsonl` on stdout, if there are two."""
    found = heldout_losses(run_dir / "metrics.jsonl")
    if len(found) < 2 or 0 not in found:
        return
    last = max(found)
    print(f"{'held-out loss':24s}{'before':>10s}{f'step {last}':>14s}")
    for name, before in found[0].items():
        kind = name.removeprefix(HELDOUT).removesuffix("_loss")
        print(f"{kind:24s}{before:10.4f}{found[last].get(name, float('nan')):14.4f}")


def heldout_losses(metrics: Path) -> dict[int, dict[str, float]]:
    """Losses on held-out samples by step, from a metrics file."""
    found: dict[int, dict[str, float]] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        losses = {k: v for k, v in record.items() if k.startswith(HELDOUT)}
        if losses:
            found[record["step"]] = losses
    return found
