"""Packing: samples of all three kinds laid end to end in rows of one fixed length.

Dims: R rows, T row length, N pictures, S picture side, G drawn pictures, P image tokens of a
picture, A text targets, M pictures of one sample.

A step's samples are known before anything is packed (`train.data.schedule`), so the whole step is
the lookahead window: `fit` assigns all of its samples to rows at once, from their lengths alone.
Nothing is left over for a later step, and so a step never depends on the steps before it.

Everything here is NumPy on the host. The arrays have the same shapes in every step, whatever the
samples were, so that the train step compiles once; `train.objectives.janus` consumes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from janus_jax.errors import InputError

Kind = Literal["understanding", "text", "generation"]
KINDS: tuple[Kind, ...] = ("understanding", "text", "generation")
_OTHER_ORDERS = 8


@dataclass(frozen=True, eq=False)
class Conversation:
    """A sample of text, with pictures to understand or without.

    Attributes:
      id: names the sample in messages.
      tokens: int32 [n]; slots of pictures hold any id.
      answer: bool [n], True where the token is to be predicted from those before it.
      pictures: uint8 [M, S, S, 3], or None.
      starts: the first of the P consecutive slots of each picture.
    """

    id: str
    tokens: np.ndarray
    answer: np.ndarray
    pictures: np.ndarray | None = None
    starts: tuple[int, ...] = ()

    @property
    def kind(self) -> Kind:
        """`understanding` where there are pictures, else `text`."""
        return "text" if self.pictures is None else "understanding"

    @property
    def length(self) -> int:
        """Slots that the sample takes in a row."""
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class Generation:
    """A prompt and the picture to draw for it.

    Attributes:
      id: names the sample in messages.
      prompt: int32 [n], ending in begin-of-image.
      codes: int32 [P], the picture's codes; each is predicted, all but the last are inputs too.
    """

    id: str
    prompt: np.ndarray
    codes: np.ndarray

    @property
    def kind(self) -> Kind:
        """Always `generation`."""
        return "generation"

    @property
    def length(self) -> int:
        """Slots that the sample takes in a row."""
        return len(self.prompt) + len(self.codes) - 1


Sample = Conversation | Generation


@dataclass(frozen=True)
class PackedShape:
    """Capacities of a packed batch: the only shapes that the train step is compiled for.

    Attributes:
      rows: R.
      length: T (4096 in the published recipe).
      pictures: N, understanding pictures of a step.
      image_size: S, pixels.
      image_tokens: P, slots of a picture to understand, and codes of a picture to draw.
      drawings: G, generation samples of a step.
      text_targets: A, answer tokens of a step.
    """

    rows: int
    length: int
    pictures: int
    image_size: int
    image_tokens: int
    drawings: int
    text_targets: int


def fit(lengths: Sequence[int], length: int, enough: int = 0) -> list[list[int]]:
    """Assigns samples to as few rows as it can.

    Row by row: the longest sample that is left opens a row, and of all ways to fill the rest of the
    row one that leaves the least room is taken (minimum bin slack; Gupta and Ho, 1999), found by a
    subset-sum over the sums that fit, kept as the bits of one integer. Samples are considered in
    the given order, so a shuffled order keeps lengths mixed to the last row, where an order by
    length would leave unfitting ones. Where that takes more rows than the tokens alone would, some
    other orders are tried, always the same ones, and the first of the best is taken.

    Args:
      lengths: of the samples.
      length: T, slots of a row.
      enough: rows that are there in any case: to fill fewer of them is not tried.

    Returns:
      For each row the indices of its samples; every sample is in exactly one row.

    Raises:
      InputError: a sample is empty or longer than a row.
    """
    for i, n in enumerate(lengths):
        if not 1 <= n <= length:
            raise InputError(f"sample {i} has {n} tokens", f"1 to {length}, the length of a row")
    sizes = [int(n) for n in lengths]
    fewest = max(-(-sum(sizes) // length), enough)
    best = _rows(range(len(sizes)), sizes, length)
    for seed in range(_OTHER_ORDERS):
        if len(best) <= fewest:
            break
        order = np.random.default_rng(seed).permutation(len(sizes)).tolist()
        best = min(best, _rows(order, sizes, length), key=len)
    return best


def _rows(order: Sequence[int], lengths: Sequence[int], length: int) -> list[list[int]]:
    left = dict.fromkeys(order)  # an ordered set that lets go of anything at once
    rows = []
    for first in sorted(order, key=lambda i: -lengths[i]):
        if first not in left:
            continue
        del left[first]
        row = [first, *_filling(left, lengths, length - lengths[first])]
        rows.append(row)
        for i in row[1:]:
            del left[i]
    return rows


def _filling(left: Iterable[int], lengths: Sequence[int], room: int) -> list[int]:
    """Those that together leave the least of some room; the first in order that fill it whole."""
    within = (1 << (room + 1)) - 1
    # Bit s of reachable[k]: some of the first k samples have s tokens together.
    tried, reachable = [], [1]
    for i in left:
        tried.append(i)
        reachable.append((reachable[-1] | reachable[-1] << lengths[i]) & within)
        if reachable[-1] >> room:
            break
    total, chosen = reachable[-1].bit_length() - 1, []
    for k in range(len(tried) - 1, -1, -1):
        if not reachable[k] >> total & 1:
            chosen.append(tried[k])
            total -= lengths[tried[k]]
    return chosen


def efficiency(lengths: Sequence[int], rows: int, length: int) -> float:
    """Share of the slots of `rows` rows that hold real tokens."""
    return float(np.sum(lengths)) / (rows * length)


def pack(
    rows: Sequence[Sequence[tuple[int, Sample]]], shape: PackedShape, kinds: Collection[Kind]
) -> dict[str, Any]:
    """Lays the samples of a group of rows end to end and says where each picture and target is.

    Args:
      rows: the samples of each row (`fit` says which), each with its rank among the samples of its
        kind in the step; fewer rows than `shape` has are filled up with padding.
      shape: the capacities.
      kinds: kinds that the run trains on, whether or not this group has any of them.

    Returns:
      A dictionary of arrays, int32 where nothing else is said:
        `tokens` [R, T]: text ids, 0 where the input is something else.
        `segment_ids` [R, T]: 1, 2, ... within each row, 0 in the padding.
        `positions` [R, T]: from 0 in each segment.
        `pixels` uint8 [N, S, S, 3]: pictures to understand, in the order of the rows.
        `image_index` [R, T]: row of the features, flattened to [N * P, D], that is the input, or
          -1.
        `codes` [G, P]: codes of the pictures to draw, in the order of the rows; `drawing_ranks`
          [G]: the ranks of their samples.
        `code_index` [R, T]: index into the flattened codes [G * P] of the code that is the input,
          or -1.
        `text_positions` [A]: slot, of R * T, whose state predicts a text token; `text_targets` [A]:
          that token; `text_weights`: for each kind of text, float32 [A], 1 at its tokens.
        `image_positions` [G * P], `image_targets` [G * P], `image_weights` float32 [G * P]: the
          same for codes.

    Raises:
      InputError: a sample that is malformed or does not fit into its row, by its id, or samples
        that exceed a capacity together.
    """
    samples = [sample for row in rows for _, sample in row]
    for sample in samples:
        _check(sample, shape)
    packer = _Packer(shape)
    packer.reserve(samples, len(rows))
    for r, row in enumerate(rows):
        start = 0
        for segment, (rank, sample) in enumerate(row, 1):
            if start + sample.length > shape.length:
                raise InputError(
                    f"sample {sample.id} ends at slot {start + sample.length} of its row",
                    f"at most {shape.length}",
                )
            packer.add(sample, rank, r, start, segment)
            start += sample.length
    return packer.arrays(kinds)


def _check(sample: Sample, shape: PackedShape) -> None:
    name = f"sample {sample.id}"
    if not 1 <= sample.length <= shape.length:
        raise InputError(
            f"{name} has {sample.length} tokens", f"1 to {shape.length}, the length of a row"
        )
    if isinstance(sample, Generation):
        if sample.codes.shape != (shape.image_tokens,):
            raise InputError(f"{name} has {sample.codes.size} codes", f"{shape.image_tokens}")
        if not len(sample.prompt):
            raise InputError(f"{name} has an empty prompt", "at least begin-of-image")
        return
    if sample.answer.shape != sample.tokens.shape:
        raise InputError(
            f"{name} has {sample.tokens.size} tokens and an answer mask of {sample.answer.size}",
            "one mask value a token",
        )
    if not sample.answer.any():
        raise InputError(f"{name} has no answer", "at least one token to predict")
    if sample.answer[0]:
        raise InputError(f"{name} asks for its first token", "answers that follow some token")
    pictures = () if sample.pictures is None else sample.pictures
    if len(pictures) != len(sample.starts) or (sample.pictures is not None and not len(pictures)):
        raise InputError(
            f"{name} has {len(pictures)} pictures and slots for {len(sample.starts)}",
            "one start of slots for each picture",
        )
    side = shape.image_size
    if sample.pictures is not None and sample.pictures.shape[1:] != (side, side, 3):
        raise InputError(
            f"{name} has pictures of shape {sample.pictures.shape[1:]}", f"{(side, side, 3)}"
        )
    free = 0
    for start in sample.starts:
        if not free <= start <= sample.length - shape.image_tokens:
            raise InputError(
                f"{name} has {sample.length} tokens and a picture's slots at {start}",
                f"{shape.image_tokens} slots within the sample, in order and apart",
            )
        free = start + shape.image_tokens


class _Packer:
    """The arrays being filled, and how far each capacity is used."""

    def __init__(self, shape: PackedShape):
        r, t, side = shape.rows, shape.length, shape.image_size
        codes = shape.drawings * shape.image_tokens
        self.shape = shape
        self.tokens = np.zeros((r, t), np.int32)
        self.segment_ids = np.zeros((r, t), np.int32)
        self.positions = np.zeros((r, t), np.int32)
        self.image_index = np.full((r, t), -1, np.int32)
        self.code_index = np.full((r, t), -1, np.int32)
        self.pixels = np.zeros((shape.pictures, side, side, 3), np.uint8)
        self.codes = np.zeros((shape.drawings, shape.image_tokens), np.int32)
        self.drawing_ranks = np.zeros(shape.drawings, np.int32)
        self.text_positions = np.zeros(shape.text_targets, np.int32)
        self.text_targets = np.zeros(shape.text_targets, np.int32)
        self.text_weights: dict[Kind, np.ndarray] = {
            kind: np.zeros(shape.text_targets, np.float32) for kind in ("understanding", "text")
        }
        self.image_positions = np.zeros(codes, np.int32)
        self.image_weights = np.zeros(codes, np.float32)
        self._pictures = self._drawings = self._targets = 0

    def reserve(self, samples: Sequence[Sample], rows: int) -> None:
        """Refuses samples that do not fit together."""
        talks = [s for s in samples if isinstance(s, Conversation)]
        shape = self.shape
        for name, needed, there in (
            ("rows", rows, shape.rows),
            ("pictures", sum(len(s.starts) for s in talks), shape.pictures),
            ("drawings", len(samples) - len(talks), shape.drawings),
            ("text_targets", sum(int(s.answer.sum()) for s in talks), shape.text_targets),
        ):
            if needed > there:
                raise InputError(
                    f"{len(samples)} samples need {name}={needed}",
                    f"at most {there}",
                    f"raise {name} or take fewer samples a step",
                )

    def add(self, sample: Sample, rank: int, row: int, start: int, segment: int) -> None:
        """Puts a sample at [row, start:]."""
        here = slice(start, start + sample.length)
        self.segment_ids[row, here] = segment
        self.positions[row, here] = np.arange(sample.length)
        if isinstance(sample, Generation):
            self._add_generation(sample, rank, row, start)
        else:
            self.tokens[row, here] = sample.tokens
            self._add_conversation(sample, row, start)

    def _add_generation(self, sample: Generation, rank: int, row: int, start: int) -> None:
        p, n = len(sample.codes), len(sample.prompt)
        self.tokens[row, start : start + n] = sample.prompt
        self.codes[self._drawings] = sample.codes
        self.drawing_ranks[self._drawings] = rank
        first = self._drawings * p
        self.code_index[row, start + n : start + n + p - 1] = first + np.arange(p - 1)
        # The state at begin-of-image predicts the first code.
        slots = row * self.shape.length + start + n - 1 + np.arange(p)
        self.image_positions[first : first + p] = slots
        self.image_weights[first : first + p] = 1
        self._drawings += 1

    def _add_conversation(self, sample: Conversation, row: int, start: int) -> None:
        p = self.shape.image_tokens
        if sample.pictures is not None:
            for picture, offset in zip(sample.pictures, sample.starts, strict=True):
                here = slice(start + offset, start + offset + p)
                self.image_index[row, here] = self._pictures * p + np.arange(p)
                self.tokens[row, here] = 0
                self.pixels[self._pictures] = picture
                self._pictures += 1
        (where,) = np.nonzero(sample.answer)
        here = slice(self._targets, self._targets + len(where))
        self.text_positions[here] = row * self.shape.length + start + where - 1
        self.text_targets[here] = sample.tokens[where]
        self.text_weights[sample.kind][here] = 1
        self._targets += len(where)

    def arrays(self, kinds: Collection[Kind]) -> dict[str, Any]:
        """What `pack` returns."""
        return {
            "tokens": self.tokens,
            "segment_ids": self.segment_ids,
            "positions": self.positions,
            "pixels": self.pixels,
            "image_index": self.image_index,
            "codes": self.codes,
            "drawing_ranks": self.drawing_ranks,
            "code_index": self.code_index,
            "text_positions": self.text_positions,
            "text_targets": self.text_targets,
            "text_weights": {k: w for k, w in self.text_weights.items() if k in kinds},
            "image_positions": self.image_positions,
            "image_targets": self.codes.reshape(-1),
            "image_weights": self.image_weights,
        }
