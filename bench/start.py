"""How long the first question takes to compile, and how long once the programs are on disk.

    python bench/start.py --json                     # Janus-Pro-1B, minutes
    python bench/start.py --json --model emoji       # the shipped architecture

Each figure is one new process with the command line's own compile cache: `cold` with an empty
folder, `warm` right after it with the folder that it left. Both trace the five programs of chat and
drawing (no weights are made), then compile them or read them back. `warm_over_cold` is the ratio of
the medians; importing JAX costs both the same and is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MODES = ("cold", "warm")


def main() -> None:
    """Measures and prints."""
    options = _options()
    if options.child:
        print(json.dumps(compile_all(options.model)))
        return
    from bench.measure import machine, summary

    report: dict[str, Any] = {"model": options.model, **machine()}
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for i in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for mode in MODES:
                found[mode].append(_child(options.model, folder))
                total = sum(found[mode][-1].values())
                print(f"round {i + 1}, {mode}: {total:.2f} s", file=sys.stderr, flush=True)
    for mode, rounds in found.items():
        report[f"{mode}_seconds"] = summary([sum(times.values()) for times in rounds])
        report[f"{mode}_programs"] = {
            name: summary([times[name] for times in rounds])["median"] for name in rounds[0]
        }
    report["warm_over_cold"] = report["warm_seconds"]["median"] / report["cold_seconds"]["median"]
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--model", default="janus-pro-1b", help="architecture")
    parser.add_argument("--rounds", type=int, default=3, help="cold and warm starts")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(model: str, folder: str) -> dict[str, float]:
    environ = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.start", "--child", "--model", model],
        env=environ | {"JANUS_JAX_CACHE_DIR": folder, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def compile_all(model: str) -> dict[str, float]:
    """Seconds of tracing and compiling each program in this process."""
    from janus_jax.cache import enable_compile_cache

    enable_compile_cache()
    times: dict[str, float] = {}
    for name, compile_one in programs(model).items():
        start = time.perf_counter()
        compile_one()
        times[name] = time.perf_counter() - start
    return times


def programs(model: str) -> Mapping[str, Callable[[], Any]]:
    """The programs of one question about a picture and of one drawing, by name."""
    import jax

    from janus_jax import functional
    from janus_jax.config import NAMED
    from janus_jax.generate import chat, image, text
    from janus_jax.generate.sampling import Sampling, bucket_length
    from janus_jax.nn.cache import KVCache

    config = NAMED[model]
    graphdef, params = functional.abstract(config)
    llm, how = config.llm, Sampling(np.float32(1.0))

    def like(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def keys(rows: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        return like(dtype=np.uint32), like(rows, 2, dtype=np.uint32), like(rows)

    asked = bucket_length(config.vision.num_patches + 50)
    cache = jax.eval_shape(
        lambda: KVCache.empty(
            llm.depth, 1, chat.cache_slots(asked + 512), llm.num_kv_heads, llm.head_dim, np.float32
        )
    )
    pixels = like(1, config.image_size, config.image_size, 3, dtype=np.float32)
    words = (graphdef, params, cache, like(), like(), like(1, asked), pixels, like(1, asked))
    reading = (*words, keys(1), like(), how)
    answer = jax.eval_shape(text.extend, *reading)

    drawn, size = 32, config.num_image_tokens
    rows = (like(1, 2, drawn), like(1, drawn, dtype=np.bool_), like(1, drawn), like(1))
    starting = (graphdef, params, *rows, keys(1), np.float32(5.0), how)
    picture = jax.eval_shape(lambda *a: image.begin(*a, num_codes=size), *starting)
    return {
        "read": lambda: text.extend.lower(*reading).compile(),
        "answer": lambda: text.advance.lower(
            graphdef, params, answer, like(), like(), how
        ).compile(),
        "start_drawing": lambda: image.begin.lower(*starting, num_codes=size).compile(),
        "draw": lambda: image.advance.lower(
            graphdef, params, picture, like(), np.float32(5.0), how
        ).compile(),
        "decode": lambda: image.pictures.lower(graphdef, params, like(1, size)).compile(),
    }


if __name__ == "__main__":
    main()
