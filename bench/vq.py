"""Decoding a picture at 384 pixels: ours beside transformers, same weights, same machine.

    python bench/vq.py --json

One picture of 576 codes, float32 on both sides; medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch

if __name__ == "__main__":
    # Python puts the script's own folder first, where `convert` would be bench/convert.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.measure import interleaved, machine, summary
from bench.peer import architecture, build
from janus_jax.generate.image import pictures


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--model", default="janus-pro-1b", help="architecture")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds")
    options = parser.parse_args()

    pair = build(architecture(options.model, 1))
    vq = pair.config.vq
    shape = (1, pair.config.num_image_tokens)
    codes = np.random.default_rng(0).integers(0, vq.codebook_size, shape).astype(np.int32)
    ids, tokens = jnp.asarray(codes), torch.from_numpy(codes.astype(np.int64))

    def ours() -> np.ndarray:
        return np.asarray(pictures(pair.graphdef, pair.params, ids))

    @torch.no_grad()
    def peer() -> np.ndarray:
        return pair.hf.decode_image_tokens(tokens).numpy()

    difference = float(np.abs(ours() - peer()).max())  # also compiles and warms
    seconds = interleaved({"ours": ours, "peer": peer}, options.rounds)
    report = {
        "model": options.model,
        **machine(),
        "largest_difference": difference,
        "seconds": {side: summary(found) for side, found in seconds.items()},
    }
    medians = {side: summary(found)["median"] for side, found in seconds.items()}
    report["decode_ratio"] = medians["peer"] / medians["ours"]
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
