"""Answering at the size of Janus-Pro-1B: ours beside transformers, same weights, same machine.

    python bench/chat.py --json                # minutes, about 20 GB of memory
    python bench/chat.py --json --layers 2     # seconds; true width, few layers

One question about one picture. `ttft` is the time to the first token: SigLIP, aligner, prefill and
text head. `decode` is seconds a token after it: the difference of a long and a short answer, both
greedy, through the loop that `janus-jax chat` runs, with its visits to the host. The peer runs its
own `generate` in float32, its fastest dtype on a CPU without bfloat16 instructions. A ratio is the
peer's seconds over ours; medians of interleaved rounds. Compilation is left out of them and given
as `compile_seconds`. `first_token_equal` says that both sides chose the same first token.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

if __name__ == "__main__":
    # Python puts the script's own folder first, where `convert` would be a module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.measure import machine, seconds, summary
from bench.peer import BOI, BOS, IMAGE_TOKEN, PAD, Pair, architecture, build
from janus_jax.generate.chat import cache_slots
from janus_jax.generate.sampling import Sampling, bucket_length
from janus_jax.generate.text import ChatState, advance, empty_cache, extend
from janus_jax.processing import image_index

QUESTION_LENGTH, WORD, EOI = 48, 11, 4
SHORT, LONG = 1, 17
NEVER = np.int32(-1)
"""No token has this id, so neither side ends early."""


def main() -> None:
    """Measures and prints."""
    options = _options()
    config = architecture(options.model, options.layers)
    _say(f"building {config.name} twice")
    pair = build(config)
    pixels = np.random.default_rng(0).standard_normal(
        (1, config.image_size, config.image_size, 3), np.float32
    )
    ours, peer = Ours(pair, pixels), Peer(pair.hf, pixels, config.vision.num_patches)
    report: dict[str, Any] = {"model": config.name, **machine()}
    cold = seconds(lambda: ours.answer(LONG))
    report["compile_seconds"] = cold - seconds(lambda: ours.answer(LONG))
    report["first_token_equal"] = bool(ours.answer(SHORT) == peer.answer(SHORT))
    report["prompt_tokens"] = len(ours.ids)

    runs: dict[str, Callable[[int], Any]] = {"ours": ours.answer, "peer": peer.answer}
    first: dict[str, list[float]] = {side: [] for side in runs}
    token: dict[str, list[float]] = {side: [] for side in runs}
    for i in range(options.rounds):
        for side, answer in runs.items():
            answer(SHORT)  # wakes what rested during the other's turn, as `interleaved` does
            short = seconds(lambda run=answer: run(SHORT))
            long = seconds(lambda run=answer: run(LONG))
            first[side].append(short)
            token[side].append((long - short) / (LONG - SHORT))
        _say(f"round {i + 1}: ttft {_last(first)}; decode {_last(token)}")
    for name, times in (("ttft", first), ("decode", token)):
        found = {side: summary(values) for side, values in times.items()}
        report[f"{name}_seconds"] = found
        report[f"{name}_ratio"] = found["peer"]["median"] / found["ours"]["median"]
    report["load_average_after"] = machine()["load_average"]
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--model", default="janus-pro-1b", help="architecture")
    parser.add_argument("--layers", type=int, help="cut both towers to this many layers")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _last(times: dict[str, list[float]]) -> str:
    return ", ".join(f"{side} {found[-1]:.3f}" for side, found in times.items())


def _prompt(patches: int) -> list[int]:
    """BOS, the picture between its markers, the question."""
    return [BOS, BOI, *[IMAGE_TOKEN] * patches, EOI, *[WORD] * QUESTION_LENGTH]


class Ours:
    """The two programs of a conversation."""

    def __init__(self, pair: Pair, pixels: np.ndarray):
        self._pair, self._pixels = pair, pixels
        patches = pair.config.vision.num_patches
        self.ids = _prompt(patches)
        self._length = bucket_length(len(self.ids))
        self._padded = np.full((1, self._length), PAD, np.int32)
        self._padded[0, : len(self.ids)] = self.ids
        self._index = image_index([[(2, patches)]], self._length, patches)
        self._how = Sampling(np.float32(0.0))

    def answer(self, count: int) -> int:
        """Makes `count` tokens; returns the first."""
        pair, llm = self._pair, self._pair.config.llm
        slots = cache_slots(self._length + LONG)
        cache = empty_cache(llm.depth, 1, slots, llm.num_kv_heads, llm.head_dim, np.float32)
        state: ChatState = extend(
            pair.graphdef,
            pair.params,
            cache,
            np.int32(0),
            np.int32(len(self.ids)),
            self._padded,
            self._pixels,
            self._index,
            (np.uint32(0), np.zeros((1, 2), np.uint32), np.zeros(1, np.int32)),
            NEVER,
            self._how,
        )
        first, made = int(state.token[0]), 1
        while made < count:
            state, _, filled = advance(
                pair.graphdef, pair.params, state, np.int32(count), NEVER, self._how
            )
            made += int(filled)
        jax.block_until_ready(state)
        return first


class Peer:
    """transformers' own `generate` in text mode."""

    def __init__(self, hf: Any, pixels: np.ndarray, patches: int):
        self._hf = hf
        self._ids = torch.tensor([_prompt(patches)])
        self._pixels = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def answer(self, count: int) -> int:
        """Makes `count` tokens; returns the first."""
        made = self._hf.generate(
            input_ids=self._ids,
            attention_mask=torch.ones_like(self._ids),
            pixel_values=self._pixels,
            generation_mode="text",
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=PAD,
        )
        return int(made[0, self._ids.shape[1]])


if __name__ == "__main__":
    main()
