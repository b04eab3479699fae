"""The packed batch that a plan assumes, in place of data that nobody has read.

Dims: G groups of rows, A micro-steps, T row length, S picture side, P image tokens of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.config import JanusConfig
from janus_jax.errors import InputError
from janus_jax.sharding import DEFAULT_RULES
from train.config import TrainConfig
from train.data.batches import deal
from train.data.packing import PackedShape, fit
from train.data.source import Entry
from train.mesh import ROWS

# Groups that are packed to see how much the fullest one holds.
_SAMPLED = 64


@dataclass(frozen=True)
class Lengths:
    """Mean lengths of samples in tokens; each sample's is drawn evenly from half to one and a half.

    Attributes:
      question: prompt of an understanding sample, without its picture.
      answer: its answer.
      text: a text sample, all of it predicted.
      caption: prompt of a generation sample.
    """

    question: int = 48
    answer: int = 128
    text: int = 512
    caption: int = 64


@dataclass(frozen=True)
class Layout:
    """Rows of a step and what is in them.

    Attributes:
      rows: of a step.
      length: T.
      groups: G.
      accumulate: A.
      shape: capacities of a group.
      pictures: understanding pictures of a step.
      drawings: drawn pictures of a step.
      text_targets: predicted text tokens of a step.
      image_tokens: P.
    """

    rows: int
    length: int
    groups: int
    accumulate: int
    shape: PackedShape
    pictures: float
    drawings: float
    text_targets: float
    image_tokens: int

    @property
    def tokens(self) -> int:
        """Slots of a step."""
        return self.rows * self.length


def make_layout(config: TrainConfig, model: JanusConfig, groups: int, lengths: Lengths) -> Layout:
    """Packs assumed samples as the trainer packs real ones.

    Args:
      config: the preset; its `rows` are those of all micro-steps.
      model: the architecture.
      groups: G, devices that rows are spread over.
      lengths: of the samples.

    Raises:
      InputError: rows that do not divide over groups and micro-steps.
    """
    parts = groups * config.accumulate
    rows = config.rows
    if rows < 1 or rows % parts:
        raise InputError(
            f"--rows {rows}: a step's rows go to {groups} devices in --accumulate "
            f"{config.accumulate} micro-steps",
            f"a multiple of {parts}",
            "change --rows or --accumulate, or use fewer devices on data and fsdp",
        )
    sampled = min(parts, _SAMPLED)
    entries = _samples(config, model, lengths, rows // parts * sampled)
    dealt = deal(fit([e.tokens for e in entries], config.length), entries, sampled)
    needs = np.array([_needs([entries[i] for row in group for i in row]) for group in dealt])
    most, mean = needs.max(0), needs.mean(0) * parts
    shape = PackedShape(
        rows=rows // parts,
        length=config.length,
        pictures=int(most[0]),
        image_size=model.image_size,
        image_tokens=model.num_image_tokens,
        drawings=int(most[1]),
        text_targets=-(-int(most[2]) // 8) * 8,
    )
    pictures, drawings, targets = map(float, mean)
    return Layout(
        rows,
        config.length,
        groups,
        config.accumulate,
        shape,
        pictures,
        drawings,
        targets,
        model.num_image_tokens,
    )


def _samples(config: TrainConfig, model: JanusConfig, lengths: Lengths, rows: int) -> list[Entry]:
    """As many samples of the mixture as fit into `rows` rows."""
    mixture, p = config.mixture, model.num_image_tokens
    rng = np.random.default_rng(0)

    def drawn(mean: int) -> int:
        return int(rng.integers(max(mean // 2, 1), mean + mean // 2 + 1))

    def one_of_each() -> list[Entry]:
        found = []
        for _ in range(mixture.understanding):
            answer = drawn(lengths.answer)
            found.append(Entry("understanding", 0, p + drawn(lengths.question) + answer, 1, answer))
        for _ in range(mixture.text):
            n = drawn(lengths.text) + 1
            found.append(Entry("text", 0, n, 0, n - 1))
        for _ in range(mixture.generation):
            found.append(Entry("generation", 0, drawn(lengths.caption) + p - 1))
        return found

    entries: list[Entry] = []
    while True:
        more = one_of_each()
        too_long = max(e.tokens for e in more) > config.length
        if too_long or sum(e.tokens for e in entries + more) > rows * config.length:
            break
        entries += more
    # The last ratio's worth goes where the rows cannot take it.
    ratio = mixture.understanding + mixture.text + mixture.generation
    while entries and len(fit([e.tokens for e in entries], config.length)) > rows:
        del entries[-ratio:]
    if not entries:
        raise InputError(
            f"--rows {config.rows} and --length {config.length} hold no sample of each kind",
            fix="raise one of them",
        )
    return entries


def _needs(group: list[Entry]) -> tuple[int, int, int]:
    return (
        sum(e.pictures for e in group),
        sum(e.kind == "generation" for e in group),
        sum(e.text_targets for e in group),
    )


def abstract_batch(layout: Layout, config: TrainConfig, mesh: Any) -> dict[str, Any]:
    """The batch of a step as shapes with shardings, laid out as `train.mesh.place` lays it.

    Args:
      layout: what is in it.
      config: the preset.
      mesh: where it goes.
    """
    s = layout.shape
    codes = s.drawings * s.image_tokens
    kinds = [kind for kind in ("understanding", "text") if getattr(config.mixture, kind)]
    rows = (s.rows, s.length)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        **dict.fromkeys(ROWS, (rows, jnp.int32)),
        "pixels": ((s.pictures, s.image_size, s.image_size, 3), jnp.uint8),
        "codes": ((s.drawings, s.image_tokens), jnp.int32),
        "drawing_ranks": ((s.drawings,), jnp.int32),
        "text_positions": ((s.text_targets,), jnp.int32),
        "text_targets": ((s.text_targets,), jnp.int32),
        "image_positions": ((codes,), jnp.int32),
        "image_targets": ((codes,), jnp.int32),
        "image_weights": ((codes,), jnp.float32),
    }

    def one(name: str, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        whole = (layout.groups * shape[0], *shape[1:])
        length = DEFAULT_RULES.length if name in ROWS else None
        spec: tuple[Any, ...] = (DEFAULT_RULES.batch, length)[: len(shape)]
        if layout.accumulate > 1:
            whole, spec = (layout.accumulate, *whole), (None, *spec)
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(whole, dtype, sharding=sharding)

    batch: dict[str, Any] = {name: one(name, *shape) for name, shape in shapes.items()}
    batch["text_weights"] = {
        kind: one("text_weights", (s.text_targets,), jnp.float32) for kind in kinds
    }
    return batch
