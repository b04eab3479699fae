"""What is done every `preview_every` steps: the loss on held-out data, and samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from train.feed import Feed
from train.metrics import HELDOUT
from train.previews import find_examples, save_preview
from train.run import Run
from train.state import TrainState
from train.step import Sums, quotients


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
      losses: on held-out data, by the name that they have among the metrics.
      sheet: file of the sample pictures, if there are any.
      texts: lists of texts about the samples, by title.
    """

    losses: Mapping[str, float] = field(default_factory=dict)
    sheet: Path | None = None
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)


# Of the state after so many steps.
Evaluate = Callable[[int, TrainState], Evaluation]


def make_evaluation(run: Run) -> Evaluate:
    """Makes the function that evaluates a state.

    Returns:
      `evaluate(step, state)`. It can be given up at any moment and made again.
    """
    config, task = run.config, run.task
    # A run on somebody's own data may keep nothing out.
    measured = bool(config.heldout or not config.data)
    feed = task.feed(run.tokenizer, "heldout") if measured else None
    examples = None
    if config.data:
        splits = {"train": config.data, "heldout": config.heldout}
        examples = find_examples(task.origin, splits)

    @jax.jit
    def measure(params: nnx.State, batch: Any) -> Sums:
        model = nnx.merge(task.graphdef, params)
        return task.heldout_loss(model, batch, jax.random.key(0))

    def losses(feed: Feed, state: TrainState) -> dict[str, float]:
        with jax.set_mesh(run.mesh):
            sums = [
                measure(state.params, feed.place(feed.read(number))) for number in range(feed.steps)
            ]
            # What is held out may hold none of the kinds that are trained.
            if not sums:
                return {}
            values = jax.device_get(quotients(jax.tree.map(lambda *parts: sum(parts), *sums)))
        return {
            f"{HELDOUT}{kind}_loss": float(values[f"{kind}_loss"])
            for kind in (name.removesuffix("_loss") for name in values if name.endswith("_loss"))
            if values[f"{kind}_tokens"] > 0
        }

    def evaluate(step: int, state: TrainState) -> Evaluation:
        found = losses(feed, state) if feed is not None else {}
        if config.data and examples is None:
            return Evaluation(found)  # text alone: nothing to show
        # As narrow as the steps compute: this copy lies beside the state.
        params = run.whole_params(state, lambda make: make().astype(config.compute_dtype))
        place = run.directory / "previews" / f"{step:07d}"
        return Evaluation(found, *save_preview(params, task.origin, place, examples))

    return evaluate
