"""The emoji data set as training samples: ids, pictures and codes, ready to be batched.

Dims: B batch, T tokens, A answer tokens, P image tokens, S picture side.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus_jax.processing.prompt import (
    Turn,
    chat_prompt,
    generation_prompt,
    image_index,
    left_pad,
    unconditional,
)
from janus_jax.processing.settings import EMOJI_PROCESSOR
from janus_jax.processing.tokenizer import Tokenizer, train_bpe
from train.config import TrainConfig
from train.data import tasks
from train.data.emoji import Emoji, load_emoji, load_pictures
from train.data.pipeline import Batches, batched
from train.data.shift import random_shift

ROLES = EMOJI_PROCESSOR.roles
# Streams of data differ in their seeds, so that two kinds do not walk the pictures in step.
_STREAM = {"understanding": 1, "text": 2, "generation": 3, "pictures": 4}


@dataclass(frozen=True, eq=False)
class Row:
    """One tokenised conversation.

    Attributes:
      ids: int32 [T].
      prompt_length: where the answer begins.
      spans: (start, length) of the picture's slots, if it has one.
      pixels: uint8 [S, S, 3], if it has a picture.
    """

    ids: np.ndarray
    prompt_length: int
    spans: tuple[tuple[int, int], ...] = ()
    pixels: np.ndarray | None = None


@functools.cache
def emoji_tokenizer(vocab_size: int) -> Tokenizer:
    """The tokenizer of the emoji model: a BPE of the training split's texts, always the same."""
    return train_bpe(tasks.tokenizer_corpus(), vocab_size)


class EmojiData:
    """Records of one split with their pictures, and the batches made of them.

    Args:
      config: the run.
      image_size: side of the pictures, pixels.
      num_image_tokens: P of the understanding encoder.
      vocab_size: size of the tokenizer.
      split: which records.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        image_size: int,
        num_image_tokens: int,
        vocab_size: int,
        split: str = "train",
    ):
        self.config = config
        self._split, self._vocab_size = split, vocab_size
        self.records = tuple(e for e in load_emoji() if e.split == split)
        self.pictures = load_pictures(self.records, image_size)
        self.tokenizer = emoji_tokenizer(vocab_size)
        self._image_tokens = num_image_tokens
        ids = {p: i for i, p in enumerate(sorted({e.picture for e in self.records}))}
        self.picture_ids = np.array([ids[e.picture] for e in self.records], np.int32)

    # What a sample is.

    def prompt(self, record: Emoji, chinese: bool) -> np.ndarray:
        """The generation prompt of a record's name, int32 [T]."""
        text = tasks.generation_prompts(record)[int(chinese)]
        return generation_prompt(self.tokenizer, text, roles=ROLES)

    def conversation(self, qa: tasks.QA, pixels: np.ndarray | None = None) -> Row:
        """A question, with a picture or without, and its answer."""
        return _conversation(self.tokenizer, self._image_tokens, qa, pixels)

    def _is_chinese(self, rng: np.random.Generator) -> bool:
        return bool(rng.random() < self.config.chinese)

    def pick_understanding(self, i: int, rng: np.random.Generator) -> Row:
        """A picture with the question what it is, or sometimes another one."""
        record, chinese = self.records[i], self._is_chinese(rng)
        if rng.random() < self.config.question_share:
            qa = tasks.sample_question(record, rng)
        else:
            qa = tasks.caption_examples(record)[int(chinese)]
        pixels = random_shift(self.pictures[i], self.config.shift_pixels, rng)
        return self.conversation(qa, pixels)

    def pick_text(self, i: int, rng: np.random.Generator) -> Row:
        """A conversation about a name."""
        return self.conversation(tasks.sample_text(self.records[i], rng))

    def pick_generation(self, i: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """A prompt, sometimes dropped as guidance drops it, and the picture's number."""
        ids = self.prompt(self.records[i], self._is_chinese(rng))
        if rng.random() < self.config.caption_drop:
            ids = unconditional(ids, self.tokenizer.pad)
        return ids, i

    # How samples become batches. Lengths are fixed for a run, so that the step compiles once.

    @functools.cached_property
    def lengths(self) -> dict[str, tuple[int, int]]:
        """Longest sample and longest answer of each kind: T and A."""
        return _lengths(self._split, self._vocab_size, self._image_tokens)

    def collate_text(self, kind: str, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Arrays of `train.objectives.janus.text_loss`."""
        length, answer_length = self.lengths[kind]
        tokens, mask, _ = left_pad([r.ids for r in rows], self.tokenizer.pad, length)
        answer = np.zeros((len(rows), answer_length), bool)
        for b, row in enumerate(rows):
            answer[b, answer_length - (len(row.ids) - row.prompt_length) :] = True
        batch = {"tokens": tokens, "mask": mask, "answer": answer}
        pixels = [r.pixels for r in rows if r.pixels is not None]
        if pixels:
            offsets = [length - len(r.ids) for r in rows]
            spans = [r.spans for r in rows]
            batch["pixels"] = np.stack(pixels)
            batch["image_index"] = image_index(spans, length, self._image_tokens, offsets)
        return batch

    def collate_generation(
        self, codes: np.ndarray, rows: Sequence[tuple[np.ndarray, int]]
    ) -> dict[str, np.ndarray]:
        """Arrays of `train.objectives.janus.image_loss`."""
        ids = [row for row, _ in rows]
        tokens, mask, _ = left_pad(ids, self.tokenizer.pad, self.lengths["generation"][0])
        return {"tokens": tokens, "mask": mask, "codes": codes[[i for _, i in rows]]}

    # The data sets.

    def batches(self, codes: np.ndarray | None) -> dict[str, Batches]:
        """Batches of every kind the mixture holds.

        Args:
          codes: int32 [N, P], the records' pictures as image tokens; needed for generation.
        """
        samples = self.config.samples()
        kinds: dict[str, tuple[Any, Any]] = {
            "understanding": (
                self.pick_understanding,
                functools.partial(self.collate_text, "understanding"),
            ),
            "text": (self.pick_text, functools.partial(self.collate_text, "text")),
        }
        if codes is not None:
            collate = functools.partial(self.collate_generation, codes)
            kinds["generation"] = (self.pick_generation, collate)
        return {
            kind: self._batched(kind, pick, collate, samples[kind])
            for kind, (pick, collate) in kinds.items()
            if samples[kind]
        }

    def pictures_only(self) -> dict[str, Batches]:
        """Batches of pictures, for the tokenizer."""

        def pick(i: int, rng: np.random.Generator) -> np.ndarray:
            return random_shift(self.pictures[i], self.config.shift_pixels, rng)

        def collate(rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
            return {"pixels": np.stack(rows)}

        return {"pictures": self._batched("pictures", pick, collate, self.config.batch_size)}

    def named_pictures(self) -> dict[str, Batches]:
        """Batches of pictures with names, for the contrastive loss."""

        def pick(i: int, rng: np.random.Generator) -> tuple[int, np.ndarray, np.ndarray]:
            pixels = random_shift(self.pictures[i], self.config.shift_pixels, rng)
            # The name alone: template and control tokens would tell nothing.
            name = tasks.generation_prompts(self.records[i])[int(self._is_chinese(rng))]
            return i, pixels, np.array(self.tokenizer.encode(" " + name), np.int32)

        def collate(rows: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
            # A prompt is longer than its name, so its longest length is enough for all names.
            length = self.lengths["generation"][0]
            tokens, mask, _ = left_pad([r[2] for r in rows], self.tokenizer.pad, length)
            return {
                "pixels": np.stack([r[1] for r in rows]),
                "tokens": tokens,
                "mask": mask,
                "picture": self.picture_ids[[r[0] for r in rows]],
            }

        return {"pictures": self._batched("pictures", pick, collate, self.config.batch_size)}

    def _batched(self, kind: str, pick: Any, collate: Any, batch_size: int) -> Batches:
        return batched(
            range(len(self.records)),
            pick,
            collate,
            batch_size=batch_size,
            seed=1000 * self.config.seed + _STREAM[kind],
        )


def _conversation(
    tokenizer: Tokenizer, num_image_tokens: int, qa: tasks.QA, pixels: np.ndarray | None = None
) -> Row:
    ask = functools.partial(
        chat_prompt,
        tokenizer,
        roles=ROLES,
        system=EMOJI_PROCESSOR.system_prompt,
        num_image_tokens=num_image_tokens,
    )
    turn = Turn("user", qa.question, num_images=int(pixels is not None))
    prompt, whole = ask([turn]), ask([turn, Turn("assistant", qa.answer)])
    return Row(whole.ids, len(prompt.ids), whole.image_spans, pixels)


# Every text of the split passes through the tokenizer here, which takes seconds; a recipe asks for
# it six times.
@functools.cache
def _lengths(split: str, vocab_size: int, num_image_tokens: int) -> dict[str, tuple[int, int]]:
    tokenizer = emoji_tokenizer(vocab_size)
    records = [e for e in load_emoji() if e.split == split]
    blank = np.zeros((1, 1, 3), np.uint8)
    rows = {
        "understanding": [
            _conversation(tokenizer, num_image_tokens, qa, blank)
            for e in records
            for qa in (*tasks.caption_examples(e), *tasks.question_examples(e))
        ],
        "text": [
            _conversation(tokenizer, num_image_tokens, qa)
            for e in records
            for qa in tasks.text_examples(e)
        ],
    }
    longest = {
        kind: (max(len(r.ids) for r in found), max(len(r.ids) - r.prompt_length for r in found))
        for kind, found in rows.items()
    }
    names = [text for e in records for text in tasks.generation_prompts(e)]
    prompts = [generation_prompt(tokenizer, name, roles=ROLES) for name in names]
    return {**longest, "generation": (max(map(len, prompts)), 0)}
