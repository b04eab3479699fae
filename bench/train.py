"""A train step at the width of Janus-Pro-1B: ours beside torch eager with the transformers model.

    python bench/train.py --json                  # about 13 minutes, 10 GB
    python bench/train.py --json --vocab 102400   # the whole vocabulary, about 20 GB

Both sides take the same step: stage 2 (adaptors, image head and language model train, SigLIP does
not) on the same packed rows, in float32, from the same weights: forward, backward, clipping, AdamW.
The peer is given the same targets, so that neither side runs a head where no loss is. Few layers
and a smaller vocabulary keep two models with two optimizers in a laptop's memory; width, heads,
MLP, image codes and row length are the real ones.

`step_ratio` is the peer's seconds over ours, medians of interleaved rounds, compilation left out.
`packing_speedup` is what our own step gains in real tokens a second over the same samples each in
a row of its own, as long as the longest. `packing_efficiency` is that of bench/packing.py.
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

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

if __name__ == "__main__":
    # Python puts the script's own folder first, where `convert` would be bench/convert.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.measure import interleaved, machine, summary
from bench.packing import measure as measure_packing
from bench.peer import Pair, architecture, build
from janus_jax.config import JanusConfig
from janus_jax.nn.layers import ShapesOnly
from janus_jax.sharding import make_mesh
from train.config import OptimizerConfig
from train.data.packing import KINDS, Conversation, Generation, PackedShape, Sample, fit, pack
from train.objectives import janus
from train.optim import make_optimizer
from train.published import PRO_1B_STAGE2
from train.scanned import ScannedJanus, stack
from train.state import abstract_state, first_state, state_shardings
from train.step import make_step

OPTIMIZER = OptimizerConfig(learning_rate=1e-4)


def samples_of(config: JanusConfig, length: int, seed: int) -> list[Sample]:
    """Random samples of all three kinds, near stage 2's 2:3:5, that fill a row of `length`."""
    rng, p = np.random.default_rng(seed), config.num_image_tokens
    side, words = config.image_size, config.llm.vocab_size
    order = ("generation", "text", "understanding", "generation", "text")
    found: list[Sample] = []
    room = length
    for kind in order * 20:
        n = int(rng.integers(40, 301)) if kind != "generation" else int(rng.integers(10, 81))
        n += {"generation": p - 1, "text": 0, "understanding": p + 2}[kind]
        if n > room:
            if room < 48:
                break
            kind, n = "text", room
        room -= n
        tokens = rng.integers(0, words, n).astype(np.int32)
        if kind == "generation":
            codes = rng.integers(0, config.vq.codebook_size, p).astype(np.int32)
            found.append(Generation(f"{len(found)}", tokens[: n - p + 1], codes))
            continue
        answer = np.arange(n) >= n - (n - p if kind == "understanding" else n) // 2
        pictures = None
        if kind == "understanding":
            pictures = rng.integers(0, 256, (1, side, side, 3)).astype(np.uint8)
        starts = (1,) if pictures is not None else ()
        found.append(Conversation(f"{len(found)}", tokens, answer, pictures, starts))
    return found


def rows_of(
    samples: Sequence[Sample], rows: Sequence[Sequence[int]], config: JanusConfig, length: int
) -> dict[str, Any]:
    """The samples in given rows of `length`."""
    talks = [s for s in samples if isinstance(s, Conversation)]
    shape = PackedShape(
        rows=len(rows),
        length=length,
        pictures=sum(len(s.starts) for s in talks),
        image_size=config.image_size,
        image_tokens=config.num_image_tokens,
        drawings=len(samples) - len(talks),
        text_targets=sum(int(s.answer.sum()) for s in talks),
    )
    return pack([[(0, samples[i]) for i in row] for row in rows], shape, KINDS)


class Ours:
    """Our train step, as `janus-jax train` runs it on one device."""

    def __init__(self, pair: Pair, batch: dict[str, Any], remat: Any):
        mesh = make_mesh({"fsdp": 1}, jax.devices()[:1])
        module = ScannedJanus(pair.config, ShapesOnly(), remat=remat)
        optimizer = make_optimizer(OPTIMIZER, 1000)
        # Copies: a step takes over the memory of its state, which the peer still reads.
        params = jax.tree.map(jnp.copy, stack(pair.params))
        parts = PRO_1B_STAGE2.trainable
        like = abstract_state(jax.eval_shape(lambda: params), parts, optimizer)
        places = state_shardings(like, mesh)
        self.state = first_state(jax.device_put(params, places.params), parts, optimizer, places)
        # Few targets: the logits of all of them are small, and need not be made twice.
        loss = functools.partial(janus.loss, chunk=batch["tokens"].size)
        self.step = make_step(nnx.graphdef(module), loss, optimizer, 0, shardings=places)
        self.mesh, self.losses = mesh, []

    def run(self, batch: dict[str, Any]) -> Callable[[], None]:
        """One step on a batch, waited for."""

        def once() -> None:
            with jax.set_mesh(self.mesh):
                self.state, metrics = self.step(self.state, batch)
            self.losses.append(float(metrics["loss"]))

        return once


class Peer:
    """The same step in torch eager with transformers' modules and its fastest AdamW."""

    def __init__(self, hf: Any):
        self.hf, self.losses = hf.train(), []
        core = hf.model
        parts = (core.aligner, core.generation_embeddings, core.generation_aligner)
        parts += (core.generation_head, core.language_model, hf.lm_head)
        self.trained = [p for part in parts for p in part.parameters()]
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=OPTIMIZER.learning_rate,
            betas=(OPTIMIZER.b1, OPTIMIZER.b2),
            weight_decay=0.0,
            fused=True,
        )

    def run(self, batch: dict[str, Any]) -> Callable[[], None]:
        """One step on a batch."""
        arrays = jax.tree.map(lambda x: torch.from_numpy(np.ascontiguousarray(x)), batch)
        segments = arrays["segment_ids"]
        same = segments[:, :, None] == segments[:, None, :]
        mask = (same & torch.ones(same.shape[1:], dtype=torch.bool).tril())[:, None]
        pixels = (arrays["pixels"].float() / 127.5 - 1).permute(0, 3, 1, 2).contiguous()

        def once() -> None:
            self.losses.append(self._step(arrays, mask, pixels))

        return once

    def _step(self, batch: dict[str, Any], mask: torch.Tensor, pixels: torch.Tensor) -> float:
        core = self.hf.model
        x = core.language_model.embed_tokens(batch["tokens"])
        width = x.shape[-1]
        if len(pixels):
            seen = core.aligner(core.vision_model(pixels).last_hidden_state).reshape(-1, width)
            x = _place(x, seen, batch["image_index"])
        if len(batch["codes"]):
            drawn = core.generation_aligner(core.generation_embeddings(batch["codes"]))
            x = _place(x, drawn.reshape(-1, width), batch["code_index"])
        states = core.language_model(
            inputs_embeds=x,
            attention_mask=mask,
            position_ids=batch["positions"],
            use_cache=False,
        ).last_hidden_state.reshape(-1, width)
        cross_entropy = torch.nn.functional.cross_entropy
        text = self.hf.lm_head(states[batch["text_positions"]])
        image = core.generation_head(states[batch["image_positions"]])
        targets = batch["text_targets"].long(), batch["image_targets"].long()
        total = cross_entropy(text, targets[0], reduction="sum")
        total = total + cross_entropy(image, targets[1], reduction="sum")
        loss = total / (len(text) + len(image))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, OPTIMIZER.clip_norm)
        self.optimizer.step()
        return float(loss.detach())


def _place(x: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return torch.where((index >= 0)[..., None], rows[index.clamp(min=0)], x)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--layers", type=int, default=2, help="layers of both towers")
    parser.add_argument("--length", type=int, default=4096, help="slots of a row")
    parser.add_argument("--vocab", type=int, default=32768, help="words")
    parser.add_argument("--remat", default="none", help="activations kept, as in a preset")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    options = parser.parse_args()
    config = architecture("janus-pro-1b", options.layers)
    config = dataclasses.replace(
        config, llm=dataclasses.replace(config.llm, vocab_size=options.vocab)
    )
    samples = samples_of(config, options.length, seed=0)
    lengths = [s.length for s in samples]
    batch = rows_of(samples, fit(lengths, options.length), config, options.length)
    alone = rows_of(samples, [[i] for i in range(len(samples))], config, max(lengths))
    pair = build(config)
    ours, peer = Ours(pair, batch, options.remat), Peer(pair.hf)
    runs = {"ours": ours.run(batch), "peer": peer.run(batch)}
    for run in runs.values():
        run()  # compiles, and makes the optimizers' state
    if abs(ours.losses[0] - peer.losses[0]) > 1e-3:
        raise RuntimeError(f"the sides differ: losses {ours.losses[0]} and {peer.losses[0]}")
    times = interleaved(runs, options.rounds)
    packing = {"packed": runs["ours"], "alone": ours.run(alone)}
    packing["alone"]()
    spread = interleaved(packing, max(2, options.rounds // 2))
    seconds = {name: summary(found) for name, found in {**times, **spread}.items()}
    report = {
        "model": config.name,
        "vocab": options.vocab,
        "rows": list(batch["tokens"].shape),
        "samples": len(samples),
        "real_tokens": sum(lengths),
        **machine(),
        "seconds": seconds,
        "losses": {"ours": ours.losses[0], "peer": peer.losses[0]},
        "step_ratio": seconds["peer"]["median"] / seconds["ours"]["median"],
        "packing_speedup": seconds["alone"]["median"] / seconds["packed"]["median"],
        "packing_efficiency": measure_packing(140, 200)["packing_efficiency"],
    }
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
