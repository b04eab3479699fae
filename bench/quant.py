"""What narrow weights change: guided distributions and pictures, against float32.

    python bench/quant.py --json                                  # the emoji model
    python bench/quant.py --json --random janus-pro-1b --layers 4 # random weights, true width

For int8 (as `--dtype int8` runs it) and for weights rounded to bfloat16, both with products in
float32: the divergence KL(float32 || narrow) in nats of the guided distribution of each image code,
all codes before it being those that float32 drew (random ones for random weights), and how often
the likeliest code stays. For the emoji model, whose 210 held-out names are evenly sampled, also
pictures drawn freely with the same seeds: the share of equal codes, how many come before the first
other one, and the distance of the pictures. Control: the same model with another seed. The shipped
model is stored in bfloat16, so rounding it to bfloat16 must change nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Python puts the script's own folder first, where `convert` and `emoji` would be files.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax import Janus, functional
from janus_jax.config import NAMED
from janus_jax.generate.image import decode_codes, generate_codes
from janus_jax.generate.sampling import Sampling, guide
from janus_jax.processing.prompt import generation_prompt, unconditional
from janus_jax.quantize import quantize
from train.data.emoji import load_emoji

GUIDANCE = (5.0, 1.0)  # of the emoji model, and none
Model = tuple[Any, Any]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--model", default="emoji", help="name or path of a model")
    parser.add_argument("--random", help="random weights of this architecture instead")
    parser.add_argument("--layers", type=int, help="layers of the random language model")
    parser.add_argument("--prompts", type=int, default=16, help="most held-out names to draw")
    parser.add_argument("--codes", type=int, default=64, help="image codes of a random sample")
    options = parser.parse_args()
    if options.random:
        report = random_weights(options.random, options.layers, options.codes)
    else:
        names = [record.name for record in load_emoji() if record.split == "heldout"]
        report = trained(options.model, names[:: -(-len(names) // options.prompts)])
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))


def to_bfloat16(graphdef: Any, params: Any) -> Model:
    """The same model with every matrix rounded to bfloat16, kept in float32."""

    def rounded(x: jax.Array) -> jax.Array:
        return x.astype(jnp.bfloat16).astype(x.dtype) if x.ndim > 1 else x

    return graphdef, jax.tree.map(rounded, params)


NARROW: dict[str, Callable[[Any, Any], Model]] = {"int8": quantize, "bfloat16": to_bfloat16}


@functools.partial(jax.jit, static_argnames=("graphdef",))
def pair_logits(graphdef: Any, params: Any, ids: jax.Array, codes: jax.Array) -> jax.Array:
    """Logits [2, P, K] of every code of a picture, conditional and unconditional.

    Args:
      graphdef: static part.
      params: parameters.
      ids: int32 [2, T], the conditional and the unconditional prompt.
      codes: int32 [P].
    """
    before = functional.embed_image_tokens(graphdef, params, codes[None, :-1])
    x = functional.embed(graphdef, params, ids)
    x = jnp.concatenate([x, jnp.repeat(before, 2, axis=0)], axis=1)
    places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    states = functional.hidden(graphdef, params, x, places, jnp.ones(x.shape[:2], bool))
    return functional.image_logits(graphdef, params, states[:, ids.shape[1] - 1 :])


def divergence(wide: np.ndarray, narrow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL(wide || narrow) in nats and whether the likeliest code is the same, [P] each."""
    a, b = (jax.nn.log_softmax(x.astype(np.float64), axis=-1) for x in (wide, narrow))
    kl = np.asarray(jnp.sum(jnp.exp(a) * (a - b), axis=-1))
    return kl, wide.argmax(-1) == narrow.argmax(-1)


def _kl_figures(
    wide: list[np.ndarray], narrow: list[np.ndarray], weight: float
) -> dict[str, float]:
    guided = [[guide(x[0], x[1], jnp.float32(weight)) for x in side] for side in (wide, narrow)]
    found = [divergence(*map(np.asarray, pair)) for pair in zip(*guided, strict=True)]
    kl, same = (np.concatenate(part) for part in zip(*found, strict=True))
    return {
        "kl_mean": float(kl.mean()),
        "kl_median": float(np.median(kl)),
        "kl_max": float(kl.max()),
        "likeliest_code_same": float(same.mean()),
    }


def random_weights(name: str, layers: int | None, codes: int) -> dict[str, Any]:
    """Figures of random weights; LeCun initialisation keeps activations at unit size."""
    config = NAMED[name]
    if layers is not None:
        config = dataclasses.replace(config, llm=dataclasses.replace(config.llm, depth=layers))
    graphdef, params = functional.build(config, 0)
    rng = np.random.default_rng(0)
    ids = rng.integers(10, config.llm.vocab_size, (2, 16)).astype(np.int32)
    drawn = rng.integers(0, config.vq.codebook_size, codes).astype(np.int32)
    wide = np.asarray(pair_logits(graphdef, params, ids, drawn))
    report: dict[str, Any] = {"model": f"{name}, random", "layers": config.llm.depth}
    for dtype, narrow in NARROW.items():
        other = np.asarray(pair_logits(*narrow(graphdef, params), ids, drawn))
        report[dtype] = _kl_figures([wide], [other], GUIDANCE[0])
        report[dtype]["logit_error_over_spread"] = float(np.std(other - wide) / np.std(wide))
    return report


def trained(name: str, prompts: Sequence[str]) -> dict[str, Any]:
    """Figures of a trained model."""
    model = Janus.from_pretrained(name, dtype="float32")
    plain: Model = model.graphdef, model.params
    rows = [generation_prompt(model.tokenizer, p, roles=model.processor.roles) for p in prompts]
    ids = [np.stack([row, unconditional(row, model.tokenizer.pad)]) for row in rows]
    report: dict[str, Any] = {"model": name, "prompts": len(prompts)}
    narrow = {dtype: make(*plain) for dtype, make in NARROW.items()}
    for weight in GUIDANCE:
        draw = functools.partial(_draw, model, prompts=prompts, weight=weight)
        codes = draw(plain, seed=0)
        pixels = decode_codes(*plain, codes)
        wide = [_logits(plain, *at) for at in zip(ids, codes, strict=True)]
        found: dict[str, Any] = {}
        for dtype, other in narrow.items():
            logits = [_logits(other, *at) for at in zip(ids, codes, strict=True)]
            drawn = draw(other, seed=0)
            found[dtype] = _kl_figures(wide, logits, weight)
            found[dtype] |= _picture_figures(codes, drawn, pixels, decode_codes(*plain, drawn))
        drawn = draw(plain, seed=1)
        found["another_seed"] = _picture_figures(codes, drawn, pixels, decode_codes(*plain, drawn))
        report[f"guidance_{weight:g}"] = found
    return report


def _logits(weights: Model, ids: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return np.asarray(pair_logits(*weights, ids, codes))


def _draw(
    model: Janus, weights: Model, prompts: Sequence[str], weight: float, seed: int
) -> np.ndarray:
    """Codes [Q, P] of all prompts, drawn with other weights of the same architecture."""
    return generate_codes(
        *weights,
        model.config,
        model.tokenizer,
        model.processor.roles,
        prompts,
        numbers=(0,),
        cfg=weight,
        how=Sampling(np.float32(1.0)),
        seed=seed,
    )[:, 0]


def _picture_figures(
    codes: np.ndarray, drawn: np.ndarray, pixels: np.ndarray, other: np.ndarray
) -> dict[str, float]:
    same = codes == drawn
    first = np.where(same.all(1), codes.shape[1], (~same).argmax(1))
    error = np.square(np.clip(pixels, -1, 1) - np.clip(other, -1, 1)).mean((1, 2, 3))
    return {
        "codes_same": float(same.mean()),
        "codes_before_first_difference": float(first.mean()),
        "pictures_same": float(same.all(1).mean()),
        "mean_square_error": float(error.mean() / 4),  # of values within 0 and 1
    }


if __name__ == "__main__":
    main()
