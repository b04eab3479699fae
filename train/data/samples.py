"""The emoji data set as training samples: ids, pictures and codes, ready to be batched.

Dims: B batch, T tokens, P image tokens, S picture side.
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
STREAM = {"understanding": 1, "text": 2, "generation": 3, "pictures": 4}


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

    # The data sets that are not packed.

    def pictures_only(self) -> Batches:
        """Batches of pictures, for the tokenizer."""

        def pick(i: int, rng: np.random.Generator) -> np.ndarray:
            return random_shift(self.pictures[i], self.config.shift_pixels, rng)

        def collate(rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
            return {"pixels": np.stack(rows)}

        return self._batched(pick, collate)

    def named_pictures(self) -> Batches:
        """Batches of pictures with names, for the contrastive loss."""

        def pick(i: int, rng: np.random.Generator) -> tuple[int, np.ndarray, np.ndarray]:
            pixels = random_shift(self.pictures[i], self.config.shift_pixels, rng)
            # The name alone: template and control tokens would tell nothing.
            name = tasks.generation_prompts(self.records[i])[int(self._is_chinese(rng))]
            return i, pixels, np.array(self.tokenizer.encode(" " + name), np.int32)

        def collate(rows: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
            # A prompt is longer than its name, so its longest length is enough for all names.
            length = _longest_prompt(self._split, self._vocab_size)
            tokens, mask, _ = left_pad([r[2] for r in rows], self.tokenizer.pad, length)
            return {
                "pixels": np.stack([r[1] for r in rows]),
                "tokens": tokens,
                "mask": mask,
                "picture": self.picture_ids[[r[0] for r in rows]],
            }

        return self._batched(pick, collate)

    def _batched(self, pick: Any, collate: Any) -> Batches:
        return batched(
            range(len(self.records)),
            pick,
            collate,
            batch_size=self.config.batch_size,
            seed=1000 * self.config.seed + STREAM["pictures"],
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


# Lengths are fixed for a run, so that the step compiles once.
@functools.cache
def _longest_prompt(split: str, vocab_size: int) -> int:
    tokenizer = emoji_tokenizer(vocab_size)
    names = [text for e in load_emoji() if e.split == split for text in tasks.generation_prompts(e)]
    return max(len(generation_prompt(tokenizer, name, roles=ROLES)) for name in names)
