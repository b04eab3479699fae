"""Conversations: several turns, whose keys and values are kept between the turns.

Dims: T padded number of new tokens, S cache slots, N pictures, P tokens of a picture.

A turn is the whole conversation rendered as `chat_prompt` renders it, less the beginning that the
cache holds already. The ids are compared one by one, so what the model sees is always that of a
fresh run, also where the text of an answer is cut into other tokens than the model had chosen.
"""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import jax
import numpy as np
from flax import nnx
from PIL import Image

from janus_jax.checkpoint import LoadedModel
from janus_jax.errors import InputError
from janus_jax.generate.sampling import Sampling, bucket_length, prompt_digest
from janus_jax.generate.settings import check_settings
from janus_jax.generate.stops import Stop, StopText
from janus_jax.generate.text import (
    PIECE,
    ChatState,
    advance,
    answer_room,
    empty_cache,
    extend,
)
from janus_jax.nn.cache import KVCache
from janus_jax.processing import (
    Prompt,
    StreamDecoder,
    Turn,
    chat_prompt,
    image_index,
    load_image,
    understanding_pixels,
)
from janus_jax.sharding import on_mesh

ImageSource = str | Path | bytes | Image.Image

MIN_SLOTS = 512

# Tokens of a prompt that are read at once: attention holds a score of each for each slot.
MAX_READ = 1024

# A stream moves a few times a second, and an interrupt waits no longer than that.
SECONDS_A_PIECE = 0.25

Ending = Literal["end", "length", "stop", "interrupted"]


def cache_slots(needed: int) -> int:
    """Slots of a conversation's cache: 512, 1024, 2048, ..., so that few sizes are compiled."""
    return max(MIN_SLOTS, 1 << (needed - 1).bit_length())


def _cuts(prompt: Prompt, start: int) -> list[int]:
    """Where the parts begin in which a prompt is read from `start` on, and its end.

    No part is longer than MAX_READ, unless a picture is, and no picture is cut.
    """
    cuts = [start]
    while len(prompt.ids) - cuts[-1] > MAX_READ:
        cut = cuts[-1] + MAX_READ
        for at, size in prompt.image_spans:
            if at < cut < at + size:
                cut = at if at > cuts[-1] else at + size
        cuts.append(cut)
    return [*cuts, len(prompt.ids)]


def _pace(seconds_a_token: float) -> int:
    """Tokens until the next visit to the host. It changes when they come, never which."""
    if jax.process_count() > 1:
        return PIECE  # hosts measure different times, but must run the same programs
    return max(1, min(PIECE, int(SECONDS_A_PIECE / seconds_a_token)))


@dataclass(frozen=True, eq=False)
class _Cached:
    """What the cache holds: token i of `ids` in slot i, with these pictures in their places."""

    cache: KVCache
    ids: np.ndarray
    pixels: tuple[np.ndarray, ...]

    def shared_with(self, prompt: Prompt, pixels: tuple[np.ndarray, ...]) -> int:
        """Tokens at the beginning that `prompt` has too; at least one of it is left to be read."""
        most = min(len(self.ids), len(prompt.ids) - 1)
        differ = np.flatnonzero(self.ids[:most] != prompt.ids[:most])
        start = int(differ[0]) if len(differ) else most
        # All pictures have the same ids: what tells them apart is the pixels.
        for i, (at, size) in enumerate(prompt.image_spans):
            same = i < len(self.pixels) and self.pixels[i] is pixels[i]
            if at < start and not (same and at + size <= start):
                return at
        return start


def prepare(
    model: LoadedModel, question: str, images: Sequence[ImageSource]
) -> tuple[np.ndarray, ...]:
    """Checks a question and reads its pictures: N arrays float32 [S, S, 3], normalised.

    Raises:
      InputError: no question, or a picture that cannot be used; names it.
    """
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"the question is {question!r}", "a text that is not empty")
    if isinstance(images, str | bytes | Path | Image.Image):
        raise InputError("images is one picture", "a list of pictures", "write [picture]")
    if not isinstance(images, Iterable):
        raise InputError(f"images is given as {type(images).__name__}", "a list of pictures")
    settings = model.processor.image
    return tuple(understanding_pixels(load_image(source), settings) for source in images)


class Conversation:
    """One conversation with a model; `Janus.start_chat` makes it.

    Attributes:
      ending: how the last answer ended: `end` (the model's end of sentence), `length` (max_tokens,
        or no room), `stop` (a stop text or rule), `interrupted` (the caller left the stream), or
        None before the first.
    """

    def __init__(self, model: LoadedModel, *, system: str | None, how: Sampling, seed: int):
        """Starts without turns.

        Args:
          model: a loaded model.
          system: system prompt; None is the model's own.
          how: sampling of the answers.
          seed: 0 to 2**32 - 1.
        """
        self._model, self._how, self._seed = model, how, seed
        self._system = model.processor.system_prompt if system is None else system
        self._turns: tuple[Turn, ...] = ()
        self._pixels: tuple[np.ndarray, ...] = ()
        self._kept: _Cached | None = None
        # Weak: a stream holds its conversation, and ends as soon as its reader drops it.
        self._open: weakref.ref[Generator[str]] | None = None
        self.ending: Ending | None = None

    @property
    def history(self) -> tuple[Turn, ...]:
        """The turns so far, user and assistant alternately."""
        return self._turns

    @property
    def num_tokens(self) -> int:
        """Tokens of the conversation so far, with its template and pictures; 0 before the first."""
        return len(self._prompt(self._turns).ids) if self._turns else 0

    @property
    def room(self) -> int:
        """Tokens that are left for questions, pictures and answers."""
        return self._model.config.llm.max_positions - self.num_tokens

    def reset(self) -> None:
        """Forgets all turns; the compiled programs and the memory of the cache stay."""
        self._close()
        self._turns, self._pixels, self.ending = (), (), None

    @overload
    def ask(
        self,
        question: str,
        images: Sequence[ImageSource] = (),
        *,
        max_tokens: int = 512,
        stop: Stop = (),
        stream: Literal[False] = False,
    ) -> str: ...

    @overload
    def ask(
        self,
        question: str,
        images: Sequence[ImageSource] = (),
        *,
        max_tokens: int = 512,
        stop: Stop = (),
        stream: Literal[True],
    ) -> Generator[str]: ...

    @overload
    def ask(
        self,
        question: str,
        images: Sequence[ImageSource] = (),
        *,
        max_tokens: int = 512,
        stop: Stop = (),
        stream: bool,
    ) -> str | Generator[str]: ...

    def ask(
        self,
        question: str,
        images: Sequence[ImageSource] = (),
        *,
        max_tokens: int = 512,
        stop: Stop = (),
        stream: bool = False,
    ) -> str | Generator[str]:
        """Asks the next question.

        The turn joins the history when the answer ends. A stream that the caller leaves early is
        kept as far as it was given; one that was never begun leaves no trace.

        Args:
          question: not empty.
          images: pictures for this question: files, bytes of files, or PIL images. Those of earlier
            turns are still seen.
          max_tokens: most tokens of the answer; it also ends where the model's positions do.
          stop: texts before which the answer ends, or a function that sees the answer so far after
            each piece and returns True to end it.
          stream: give the answer in pieces as it is made, instead of whole.

        Returns:
          The answer without outer white space; or with `stream` an iterator over its pieces, which
          join to the same text but for that white space. No piece ends within a character.

        Raises:
          InputError: a question, image or setting that cannot be used, or a conversation that is
            too long. This call raises it, with `stream` too, and nothing has changed.
        """
        self._close()
        check_settings(max_tokens=max_tokens)
        gate = StopText(stop)
        pixels = prepare(self._model, question, images)
        turn = Turn("user", question, num_images=len(pixels))
        prompt = self._prompt((*self._turns, turn))
        try:
            room = answer_room(self._model.config, prompt)
        except InputError as error:
            if not self._turns:
                raise
            raise InputError(
                f"the conversation is too long: {len(prompt.ids)} tokens with this question, "
                f"{self.num_tokens} before it",
                f"at most {self._model.config.llm.max_positions - 1} tokens, room for {self.room}",
                "ask something shorter, or start a new conversation",
            ) from error
        pieces = self._answer(turn, pixels, prompt, min(int(max_tokens), room), gate)
        self._open = weakref.ref(pieces)
        return pieces if stream else "".join(pieces).strip()

    def _answer(
        self, turn: Turn, pixels: tuple[np.ndarray, ...], prompt: Prompt, most: int, gate: StopText
    ) -> Generator[str]:
        decoder = StreamDecoder(self._model.tokenizer)
        said, ending, begun = "", "interrupted", False
        try:
            for token in self._tokens(prompt, self._pixels + pixels, turn.text, most):
                begun = True
                if token is None:
                    ending = "end"
                    break
                if piece := gate.push(decoder.push(token)):
                    said += piece
                    yield piece
                if gate.stopped:
                    ending = "stop"
                    break
            else:
                ending = "length"
            if piece := gate.push(decoder.finish()) + gate.finish():
                said += piece
                yield piece
        finally:
            if begun:
                self._turns += (turn, Turn("assistant", said))
                self._pixels += pixels
                self.ending = ending

    def _tokens(
        self, prompt: Prompt, pixels: tuple[np.ndarray, ...], text: str, most: int
    ) -> Iterator[int | None]:
        """Ids of the answer; None at its end if the model ended it."""
        model, eos = self._model, np.int32(self._model.tokenizer.eos)
        state = self._read(prompt, pixels, text, most)
        ids, made, pace = prompt.ids, 0, 1
        new = np.asarray(state.token)
        while True:
            made += len(new)
            # The last token has been sampled, but is not in the cache yet.
            self._kept = _Cached(state.cache, np.concatenate([ids, new[:-1]]), pixels)
            ids = np.concatenate([ids, new])
            for token in new:
                if token == eos:
                    yield None
                    return
                yield int(token)
            if made >= most:
                return
            # While the program runs the old cache is gone: whoever interrupts it must find none.
            self._kept = None
            begun, stop = time.perf_counter(), np.int32(min(most, made + pace))
            with on_mesh(model.params):
                state, piece, count = advance(
                    model.graphdef, model.params, state, stop, eos, self._how
                )
            new = np.asarray(piece)[0, : int(count)]
            pace = _pace((time.perf_counter() - begun) / len(new))

    def _read(
        self, prompt: Prompt, pixels: tuple[np.ndarray, ...], text: str, most: int
    ) -> ChatState:
        """Brings the cache up to the end of the prompt and samples the first token."""
        kept, self._kept = self._kept, None
        cuts = _cuts(prompt, 0 if kept is None else kept.shared_with(prompt, pixels))
        *parts, last = itertools.pairwise(cuts)
        # A part is padded on the right, into slots of its own.
        padded = max(start + bucket_length(end - start) for start, end in (*parts, last))
        slots = cache_slots(max(padded, len(prompt.ids) + most))
        with on_mesh(self._model.params):
            cache = self._room_for(slots, None if kept is None else kept.cache)
            for part in parts:
                cache = self._read_part(prompt, pixels, text, part, cache).cache
            return self._read_part(prompt, pixels, text, last, cache)

    def _read_part(
        self,
        prompt: Prompt,
        pixels: tuple[np.ndarray, ...],
        text: str,
        part: tuple[int, int],
        cache: KVCache,
    ) -> ChatState:
        (start, end), model = part, self._model
        length = bucket_length(end - start)
        ids = np.full((1, length), model.tokenizer.pad, np.int32)
        ids[0, : end - start] = prompt.ids[start:end]
        seen = [
            (span, x)
            for span, x in zip(prompt.image_spans, pixels, strict=True)
            if start <= span[0] < end
        ]
        index = stacked = None
        if seen:
            spans = [(at - start, size) for (at, size), _ in seen]
            index = image_index([spans], length, model.config.vision.num_patches)
            stacked = np.stack([x for _, x in seen])
        turn = np.array([sum(t.role == "user" for t in self._turns)], np.int32)
        return extend(
            model.graphdef,
            model.params,
            cache,
            np.int32(start),
            np.int32(end - start),
            ids,
            stacked,
            index,
            (np.uint32(self._seed), prompt_digest(text)[None], turn),
            np.int32(model.tokenizer.eos),
            self._how,
        )

    def _room_for(self, slots: int, cache: KVCache | None) -> KVCache:
        if cache is not None:
            return cache if cache.valid.shape[1] >= slots else cache.grow(slots)
        llm = self._model.config.llm
        dtype = nnx.merge(self._model.graphdef, self._model.params).llm.embed.dtype
        return empty_cache(llm.depth, 1, slots, llm.num_kv_heads, llm.head_dim, dtype)

    def _prompt(self, turns: Sequence[Turn]) -> Prompt:
        return chat_prompt(
            self._model.tokenizer,
            turns,
            roles=self._model.processor.roles,
            system=self._system,
            num_image_tokens=self._model.config.vision.num_patches,
        )

    def _close(self) -> None:
        if self._open is not None and (pieces := self._open()) is not None:
            pieces.close()
        self._open = None
