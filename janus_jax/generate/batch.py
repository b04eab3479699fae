"""Many conversations, answered in batches of as many as fit into the memory.

Dims: B rows, T padded prompt length, N pictures of all rows, S cache slots.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.checkpoint import LoadedModel
from janus_jax.errors import InputError
from janus_jax.generate.chat import Ending, ImageSource, prepare
from janus_jax.generate.sampling import Sampling, bucket_length, prompt_digest
from janus_jax.generate.settings import check_settings
from janus_jax.generate.stops import Stop, StopText
from janus_jax.generate.text import advance, answer_room, begin
from janus_jax.memory import answering, cache_itemsize, free_bytes, gb, param_bytes
from janus_jax.processing import Prompt, StreamDecoder, Turn, chat_prompt, image_index, left_pad
from janus_jax.sharding import least_of_hosts, mesh_of, on_mesh

# Conversations answered at once, at most. A CPU is busy with fewer, and sums more of them in
# another order (`janus_jax.generate.image`).
MAX_ROWS, MAX_ROWS_CPU = 128, 16


@dataclass(frozen=True)
class ChatRequest:
    """One question of a batch.

    Attributes:
      question: not empty.
      images: pictures before it: files, bytes of files, or PIL images.
      seed: 0 to 2**32 - 1; matters above temperature 0.
      system: system prompt; None is the model's own.
      name: what errors call it; by default its number, from 1.
    """

    question: str
    images: Sequence[ImageSource] = ()
    seed: int = 0
    system: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class ChatResult:
    """What came of it.

    Attributes:
      text: the answer without outer white space; None where the request failed.
      ending: `end`, `length` or `stop`, as in `Conversation`; None where it failed.
      error: why it failed; None where it did not.
    """

    text: str | None = None
    ending: Ending | None = None
    error: InputError | None = None


@dataclass(frozen=True, eq=False)
class _Row:
    request: ChatRequest
    prompt: Prompt
    pixels: tuple[np.ndarray, ...]
    most: int


class _Answer:
    """Text of one row in the making."""

    def __init__(self, model: LoadedModel, stop: Stop):
        self._decoder, self._gate = StreamDecoder(model.tokenizer), StopText(stop)
        self._eos = model.tokenizer.eos
        self.text, self.ending = "", "length"
        self.done = False

    def push(self, token: int) -> None:
        if token == self._eos:
            self.done, self.ending = True, "end"
            return
        self.text += self._gate.push(self._decoder.push(token))
        if self._gate.stopped:
            self.done, self.ending = True, "stop"

    def finish(self) -> ChatResult:
        self.text += self._gate.push(self._decoder.finish()) + self._gate.finish()
        ending: Any = "stop" if self._gate.stopped else self.ending
        return ChatResult(self.text.strip(), ending)


def answer_batch(
    model: LoadedModel,
    requests: Sequence[ChatRequest],
    *,
    max_tokens: int,
    how: Sampling,
    stop: Stop = (),
) -> list[ChatResult]:
    """Answers every request that can be answered.

    Args:
      model: a loaded model.
      requests: any number.
      max_tokens: most tokens of each answer.
      how: sampling, the same for all.
      stop: stop texts, or a rule; the same for all.

    Returns:
      One result for each request, in order.

    Raises:
      InputError: `stop` cannot be used.
    """
    StopText(stop)
    weights = param_bytes(model.params)
    free, takes = _free(model, weights), functools.partial(_bytes, model, weights)
    results: dict[int, ChatResult] = {}
    rows: dict[int, _Row] = {}
    for i, request in enumerate(requests):
        try:
            row = _prepare(model, request, max_tokens)
            if (need := takes([row])) > free:
                raise InputError(
                    f"answering it takes {gb(need)} on a device ({gb(weights)} of weights), "
                    f"{gb(free)} are free",
                    fix="ask something shorter, lower max_tokens, use a narrower dtype, or spread "
                    "the model over a mesh",
                )
            rows[i] = row
        except InputError as error:
            name = f"request {i + 1}" if request.name is None else request.name
            failed = InputError(f"{name}: {error.what}", error.allowed, error.fix)
            results[i] = ChatResult(error=failed)
    for batch in _batches(rows, lambda chosen: takes(chosen) <= free):
        answers = _run(model, [rows[i] for i in batch], how, stop)
        results.update(zip(batch, answers, strict=True))
    return [results[i] for i in range(len(requests))]


def _free(model: LoadedModel, weights: int) -> int:
    """Bytes for the model and its answers on each device, the same for all hosts that share it."""
    free = free_bytes(weights)
    # Counted in KiB, because hosts agree on 32 bits. What is unknown limits nothing.
    most = np.iinfo(np.int32).max
    return least_of_hosts(model.params, most if free is None else min(free >> 10, most)) << 10


def _bytes(model: LoadedModel, weights: int, rows: Sequence[_Row]) -> int:
    """What answering these rows together takes on a device."""
    length, slots = _sizes(rows)
    mesh = mesh_of(model.params)
    return answering(
        model.config,
        weights,
        len(rows),
        sum(len(row.pixels) for row in rows),
        length,
        slots,
        itemsize=cache_itemsize(model.params),
        mesh=None if mesh is None else dict(mesh.shape),
    ).total


def _batches(
    rows: Mapping[int, _Row], fit: Callable[[Sequence[_Row]], bool]
) -> Iterator[list[int]]:
    """Places of the rows that are answered together: as many as `fit` says."""
    most = MAX_ROWS_CPU if jax.default_backend() == "cpu" else MAX_ROWS
    batch: list[int] = []
    # Like rows side by side: less padding, and fewer programs to compile.
    for i in sorted(rows, key=lambda i: (len(rows[i].pixels), len(rows[i].prompt.ids))):
        larger = [*batch, i]
        if batch and not (len(larger) <= most and fit([rows[j] for j in larger])):
            yield batch
            larger = [i]
        batch = larger
    if batch:
        yield batch


def _sizes(rows: Sequence[_Row]) -> tuple[int, int]:
    """T and S of rows that are answered together."""
    length = bucket_length(max(len(row.prompt.ids) for row in rows))
    # Bucketed too: another max_tokens then rarely compiles again.
    return length, bucket_length(length + max(row.most for row in rows))


def _prepare(model: LoadedModel, request: ChatRequest, max_tokens: int) -> _Row:
    check_settings(seed=request.seed)
    pixels = prepare(model, request.question, request.images)
    prompt = chat_prompt(
        model.tokenizer,
        [Turn("user", request.question, num_images=len(pixels))],
        roles=model.processor.roles,
        system=model.processor.system_prompt if request.system is None else request.system,
        num_image_tokens=model.config.vision.num_patches,
    )
    return _Row(request, prompt, pixels, min(max_tokens, answer_room(model.config, prompt)))


def _run(model: LoadedModel, rows: list[_Row], how: Sampling, stop: Stop) -> list[ChatResult]:
    prompts = [row.prompt for row in rows]
    length, slots = _sizes(rows)
    ids, mask, positions = left_pad([p.ids for p in prompts], model.tokenizer.pad, length)
    pixels = [picture for row in rows for picture in row.pixels]
    index = stacked = None
    if pixels:
        spans = [prompt.image_spans for prompt in prompts]
        shifts = [length - len(prompt.ids) for prompt in prompts]
        index = image_index(spans, length, model.config.vision.num_patches, shifts)
        stacked = np.stack(pixels)
    keys_from = (
        np.array([row.request.seed for row in rows], np.uint32),
        np.stack([prompt_digest(row.request.question) for row in rows]),
        np.zeros(len(rows), np.int32),
    )
    most = np.array([row.most for row in rows], np.int32)
    eos = np.int32(model.tokenizer.eos)
    with on_mesh(model.params):
        state = begin(
            model.graphdef,
            model.params,
            ids,
            mask,
            positions,
            stacked,
            index,
            keys_from,
            eos,
            how,
            slots=slots,
        )
    answers = [_Answer(model, stop) for _ in rows]
    tokens, made = np.asarray(state.token)[:, None], 0
    while True:
        for answer, row, found in zip(answers, rows, tokens, strict=True):
            for token in found[: max(row.most - made, 0)]:
                if not answer.done:
                    answer.push(int(token))
        made += tokens.shape[1]
        ended = np.array([a.done or made >= r.most for a, r in zip(answers, rows, strict=True)])
        if ended.all():
            return [answer.finish() for answer in answers]
        state = dataclasses.replace(state, done=jnp.asarray(ended))
        with on_mesh(model.params):
            state, piece, count = advance(model.graphdef, model.params, state, most, eos, how)
        tokens = np.asarray(piece)[:, : int(count)]
