"""Drawing at the size of Janus-Pro-1B: ours beside transformers, same weights, same machine.

    python bench/generate.py --json                     # minutes; whole pictures are extrapolated
    python bench/generate.py --json --layers 2          # seconds; true width, few layers
    python bench/generate.py --json --whole             # draws whole pictures, about 25 minutes

One guided picture is two rows a step. A step is what both sides do for one image token: embedding,
all layers, image head, guidance, sampling. The peer runs its own `generate`. First both in float32,
interleaved; then, because two more models do not fit into a laptop's memory, ours in int8 beside
the peer in bfloat16, interleaved again. Ratios named best compare each side's fastest dtype. A
ratio is the peer's seconds over ours; medians, compilation left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image

if __name__ == "__main__":
    # Python puts the script's own folder first, where `convert` would be bench/convert.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.measure import interleaved, machine, seconds, summary
from bench.peer import BOI, BOS, PAD, Pair, architecture, build
from janus_jax.generate.image import DrawState, advance, begin, decode_codes
from janus_jax.generate.sampling import Sampling
from janus_jax.processing import to_uint8
from janus_jax.quantize import quantize

PROMPT_LENGTH = 32
WARM, STEPS = 2, 12


def main() -> None:
    """Measures and prints."""
    options = _options()
    config = architecture(options.model, options.layers)
    # Drawing never looks at a picture: most of the vision tower's 2.4 GB can stay away.
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, depth=1))
    _say(f"building {config.name} twice")
    pair = build(config)
    report: dict[str, Any] = {"model": config.name, **machine()}
    report["read_bandwidth_gb_s"] = read_bandwidth()

    ours, peer = Ours(pair), Peer(pair.hf)
    del pair  # the narrow models take the place of these
    one = {"ours": ours.steps(1), "peer": peer.steps(1)}
    report |= _step_figures("step_seconds", one, options.rounds)
    report["step_ratio_f32"] = _ratio(report["step_seconds"])
    four = {"ours": ours.steps(4), "peer": peer.steps(4)}
    report |= _step_figures("four_images_step_seconds", four, options.rounds)
    report["four_images_ratio"] = _ratio(report["four_images_step_seconds"])

    report |= ours.overhead(options.rounds)
    step = report["step_seconds"]["ours"]["median"]
    report["read_bandwidth_fraction"] = (
        ours.bytes_a_step() / step / 1e9 / report["read_bandwidth_gb_s"]
    )
    wide = _images(ours, peer, report["step_seconds"], whole=options.whole)
    report |= wide
    report["image_ratio_f32"] = wide["image_seconds"]["peer"] / wide["image_seconds"]["ours"]
    _say("float32: " + json.dumps(report))

    peer.to_bfloat16()
    ours.to_int8()
    report |= _step_figures("narrow_step_seconds", one, options.rounds)
    narrow = _images(ours, peer, report["narrow_step_seconds"], whole=options.whole)
    report |= {f"narrow_{name}": value for name, value in narrow.items()}
    medians = [
        {side: report[name][side]["median"] for side in one}
        for name in ("step_seconds", "narrow_step_seconds")
    ]
    report["step_ratio_best"] = _best_ratio(*medians)
    report["image_ratio_best"] = _best_ratio(wide["image_seconds"], narrow["image_seconds"])
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
    parser.add_argument("--whole", action="store_true", help="draw whole pictures, not a part")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _ratio(times: dict[str, dict[str, float]]) -> float:
    return times["peer"]["median"] / times["ours"]["median"]


def _best_ratio(*seconds: dict[str, float]) -> float:
    """The peer's fastest over our fastest."""
    return min(s["peer"] for s in seconds) / min(s["ours"] for s in seconds)


def _step_figures(
    name: str, runs: dict[str, Callable[[int], float]], rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds a step of each side: the difference of a long and a short stretch of one picture."""
    for run in runs.values():
        run(WARM)  # compilation, threads, caches
    times: dict[str, list[float]] = {side: [] for side in runs}
    for i in range(rounds):
        for side, run in runs.items():
            run(WARM)  # wakes what rested during the other's turn, as `interleaved` does
            times[side].append((run(STEPS) - run(WARM)) / (STEPS - WARM))
        _say(f"{name}, round {i + 1}: " + ", ".join(f"{s} {t[-1]:.3f}" for s, t in times.items()))
    return {name: {side: summary(found) for side, found in times.items()}}


def read_bandwidth() -> float:
    """GB/s of summing 2 GB of float32, as XLA does it with all cores."""
    x = jnp.ones((2**29,), jnp.float32)
    total = jax.jit(jnp.sum)
    total(x).block_until_ready()
    return x.nbytes / 1e9 / min(seconds(lambda: total(x).block_until_ready()) for _ in range(5))


class Ours:
    """Our loop over image tokens."""

    def __init__(self, pair: Pair):
        self._pair = pair
        self._how = Sampling(np.float32(1.0), None, None)
        self._weight = np.float32(5.0)

    @property
    def codebook_size(self) -> int:
        """Number of different codes."""
        return self._pair.config.vq.codebook_size

    def to_int8(self) -> None:
        """Goes over to int8 weights; the float32 ones are freed."""
        graphdef, params = quantize(self._pair.graphdef, self._pair.params)
        self._pair = dataclasses.replace(self._pair, graphdef=graphdef, params=params)

    def start(self, images: int) -> DrawState:
        """Prefills one prompt and draws the first token of every picture."""
        ids = np.full((1, 2, PROMPT_LENGTH), 11, np.int32)
        ids[:, 1] = PAD
        ids[..., 0], ids[..., -1] = BOS, BOI
        state = begin(
            self._pair.graphdef,
            self._pair.params,
            ids,
            np.ones((1, PROMPT_LENGTH), bool),
            np.arange(PROMPT_LENGTH, dtype=np.int32)[None],
            np.zeros(images, np.int32),
            (np.uint32(0), np.zeros((images, 2), np.uint32), np.arange(images, dtype=np.int32)),
            self._weight,
            self._how,
            num_codes=self._pair.config.num_image_tokens,
        )
        return jax.block_until_ready(state)

    def advance(self, state: DrawState, stop: int) -> DrawState:
        """Draws up to `stop` tokens."""
        pair = self._pair
        state = advance(pair.graphdef, pair.params, state, np.int32(stop), self._weight, self._how)
        return jax.block_until_ready(state)

    def steps(self, images: int) -> Callable[[int], float]:
        """Seconds of a prompt and the first `count` tokens of every picture."""

        def run(count: int) -> float:
            return seconds(lambda: self.advance(self.start(images), count))

        return run

    def overhead(self, rounds: int) -> dict[str, Any]:
        """How much longer a step takes in the loop than alone, both compiled.

        The state is given away at each call, so the lone step is the loop called for one token.
        """
        state = self.start(1)
        state = self.advance(state, 4)
        alone, loop = [], []
        for _ in range(rounds):
            for _ in range(8):
                at = int(state.step)
                before = state
                alone.append(seconds(lambda s=before, a=at: _keep(box, self.advance(s, a + 1))))
                state = box[0]
            at = int(state.step)
            before = state
            loop.append(seconds(lambda s=before, a=at: _keep(box, self.advance(s, a + 8))) / 8)
            state = box[0]
        return {
            "loop_step_seconds": summary(loop),
            "lone_step_seconds": summary(alone),
            "loop_overhead": summary(loop)["median"] / summary(alone)["median"] - 1.0,
        }

    def bytes_a_step(self) -> int:
        """Weights that one token needs: layers, final norm, image side; each read once."""
        from janus_jax.functional import flat_params

        skipped = ("llm/embed", "llm/lm_head", "vision/", "aligner/", "vq/", "gen_embed/")
        flat = flat_params(self._pair.params)
        return sum(v.nbytes for k, v in flat.items() if not k.startswith(skipped))

    def png(self, codes: np.ndarray) -> bytes:
        """A picture file."""
        pixels = to_uint8(decode_codes(self._pair.graphdef, self._pair.params, codes))
        return _png(pixels[0])


box: list[Any] = [None]


def _keep(box: list[Any], value: Any) -> None:
    box[0] = value


class Peer:
    """transformers' own `generate` in image mode."""

    def __init__(self, hf: Any):
        self._hf = hf
        self._tokens = hf.model.vision_model.config.num_image_tokens
        hf.generation_config.generation_kwargs = {"boi_token_id": BOI}

    def to_bfloat16(self) -> None:
        """Goes over to bfloat16; the float32 weights are freed where ours do not share them."""
        self._hf.to(torch.bfloat16)

    def generate(self, images: int, count: int) -> torch.Tensor:
        """Draws `count` tokens of every picture; caches as large as for whole ones."""
        ids = torch.full((1, PROMPT_LENGTH), 11)
        ids[0, 0], ids[0, -1] = BOS, BOI
        # The number of tokens is read from this config and nowhere else.
        self._hf.model.vision_model.config.num_image_tokens = count
        try:
            return self._hf.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_mode="image",
                do_sample=True,
                guidance_scale=5.0,
                num_return_sequences=images,
                max_length=PROMPT_LENGTH + self._tokens,
                bos_token_id=BOS,
                pad_token_id=PAD,
            )
        finally:
            self._hf.model.vision_model.config.num_image_tokens = self._tokens

    def steps(self, images: int) -> Callable[[int], float]:
        """Seconds of a prompt and the first `count` tokens of every picture."""
        return lambda count: seconds(lambda: self.generate(images, count))

    @torch.no_grad()
    def png(self, codes: torch.Tensor) -> bytes:
        """A picture file."""
        pixels = self._hf.decode_image_tokens(codes)[0].float().numpy()
        return _png(np.clip((pixels + 1) / 2 * 255, 0, 255).astype(np.uint8))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _images(
    ours: Ours, peer: Peer, step: dict[str, dict[str, float]], *, whole: bool
) -> dict[str, Any]:
    """Prompt to PNG: drawn whole, or the parts measured and the steps multiplied."""
    total = peer._tokens
    codes = np.random.default_rng(0).integers(0, ours.codebook_size, (1, total)).astype(np.int32)
    drawn = torch.from_numpy(codes.astype(np.int64))
    ours.png(codes)  # compilation
    peer.png(drawn)
    decode = interleaved({"ours": lambda: ours.png(codes), "peer": lambda: peer.png(drawn)}, 3)
    if whole:
        seen = interleaved(
            {
                "ours": lambda: ours.png(np.asarray(ours.advance(ours.start(1), total).codes)),
                "peer": lambda: peer.png(peer.generate(1, total)),
            },
            1,
            wake={"ours": lambda: ours.steps(1)(WARM), "peer": lambda: peer.steps(1)(WARM)},
        )
        image = {side: found[0] for side, found in seen.items()}
    else:
        first = {"ours": ours.steps(1)(1), "peer": peer.steps(1)(1)}
        image = {
            side: first[side] + (total - 1) * step[side]["median"] + summary(decode[side])["median"]
            for side in first
        }
    return {
        "decode_seconds": {side: summary(found) for side, found in decode.items()},
        "image_seconds": image,
        "image_measured_steps": total if whole else STEPS,
    }


if __name__ == "__main__":
    main()
