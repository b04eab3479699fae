"""A record as the model sees it: prompts as ids, pictures as pixels, answers marked.

Dims: S picture side, P slots of a picture to understand and codes of one to draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from janus_jax.errors import InputError
from janus_jax.processing.image import load_image, understanding_canvas
from janus_jax.processing.prompt import (
    Prompt,
    Turn,
    chat_prompt,
    generation_prompt,
    unconditional,
)
from janus_jax.processing.settings import ProcessorConfig
from janus_jax.processing.tokenizer import Tokenizer
from train.data.packing import Conversation, Generation, Sample
from train.data.records.record import Record
from train.data.records.schema import BrokenRecord

# What `measure` says of a record is kept on disk; a change of the code below raises this.
_VERSION = 1


@dataclass(frozen=True)
class Measures:
    """What a record takes: see `train.data.source.Entry`."""

    tokens: int
    text_targets: int = 0
    pictures: int = 0


@dataclass(frozen=True)
class Preparation:
    """How records become samples of one model.

    Attributes:
      tokenizer: the model's tokenizer.
      processor: its image settings, role names and system prompt.
      image_tokens: P.
      codebook_size: codes are below this.
      fast_decode: decode JPEG files at a half, a quarter or an eighth of their size where they are
        that much larger than S. Faster, and not pixel-equal to the reference (bench/data.py).
    """

    tokenizer: Tokenizer
    processor: ProcessorConfig
    image_tokens: int
    codebook_size: int
    fast_decode: bool = False

    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for everything that `measure` depends on."""
        parts = (
            str(_VERSION),
            self.tokenizer.to_json(),
            # Pixels change no length.
            replace(self.processor, image=type(self.processor.image)()).to_json(),
            f"{self.image_tokens} {self.codebook_size}",
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def measure(self, record: Record) -> Measures:
        """Lengths, without decoding pictures.

        Raises:
          BrokenRecord: the record can never be a sample.
        """
        if record.kind == "generation":
            prompt, codes = self._drawing(record)
            return Measures(len(prompt) + len(codes) - 1)
        prompt, answer = self._talk(record)
        return Measures(len(prompt.ids), int(answer.sum()), len(record.images))

    def sample(self, record: Record, drop_caption: bool = False) -> Sample:
        """The whole sample.

        Args:
          record: the record.
          drop_caption: replace a generation prompt as guidance replaces it at inference.

        Raises:
          BrokenRecord: a picture cannot be decoded, or as for `measure`.
        """
        if record.kind == "generation":
            prompt, codes = self._drawing(record)
            if drop_caption:
                prompt = unconditional(prompt, self.tokenizer.pad)
            return Generation(record.id, prompt, codes)
        prompt, answer = self._talk(record)
        pictures = self._pictures(record) if record.images else None
        starts = tuple(start for start, _ in prompt.image_spans)
        return Conversation(record.id, prompt.ids, answer, pictures, starts)

    def _drawing(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        codes = record.codes
        if codes is None:
            raise BrokenRecord(record.id, "no image tokens", "janus-jax data encode adds them")
        if len(codes) != self.image_tokens:
            raise BrokenRecord(
                record.id, "wrong number of image tokens", f"{len(codes)}, not {self.image_tokens}"
            )
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise BrokenRecord(
                record.id, "image tokens out of range", f"0 to {self.codebook_size - 1}"
            )
        with _broken(record, "the caption makes no prompt"):
            prompt = generation_prompt(self.tokenizer, record.caption, roles=self.processor.roles)
        return prompt, codes

    def _talk(self, record: Record) -> tuple[Prompt, np.ndarray]:
        """The conversation as ids, and bool [T], True at the answers' tokens and their ends."""
        with _broken(record, "the turns make no prompt"):
            turns = [Turn(role, text) for role, text in record.turns]  # type: ignore[arg-type]
            if record.images:
                turns[0] = replace(turns[0], num_images=len(record.images))
            prompt = self._chat(turns)
            return prompt, self._answers(prompt.ids, turns)

    def _chat(self, turns: list[Turn]) -> Prompt:
        return chat_prompt(
            self.tokenizer,
            turns,
            roles=self.processor.roles,
            system=self.processor.system_prompt,
            num_image_tokens=self.image_tokens,
        )

    def _answers(self, ids: np.ndarray, turns: list[Turn]) -> np.ndarray:
        # No text can hold end-of-sentence, so it ends the answers and nothing else.
        ends = np.flatnonzero(ids == self.tokenizer.eos).tolist()
        if len(turns) % 2 or not turns or len(ends) != len(turns) // 2:
            raise InputError("an answer is missing or empty", "a text in every assistant turn")
        answer = np.zeros(len(ids), bool)
        for i, end in enumerate(ends):
            # An answer is generated after a prompt that ends in "{assistant}:", so it begins where
            # that ends: a tokenizer may give other ids for both together.
            alone = self.tokenizer.encode(" " + turns[2 * i + 1].text.strip())
            start = end - len(alone)
            if start < 0 or ids[start:end].tolist() != alone:
                start = min(len(self._chat(turns[: 2 * i + 1]).ids), end)
            answer[start : end + 1] = True
        return answer

    def _pictures(self, record: Record) -> np.ndarray:
        """uint8 [M, S, S, 3]; normalised in the train step."""
        settings = self.processor.image
        side = settings.image_size if self.fast_decode else None
        shape = (len(record.images), settings.image_size, settings.image_size, 3)
        pictures = np.empty(shape, np.uint8)
        with _broken(record, "picture cannot be decoded"):
            for data, canvas in zip(record.images, pictures, strict=True):
                understanding_canvas(load_image(data, at_least=side), settings, canvas)
        return pictures


@contextmanager
def _broken(record: Record, reason: str) -> Iterator[None]:
    """Names the record and the reason, whatever it is that the bytes of a stranger set off."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        detail = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise BrokenRecord(record.id, reason, detail) from error
