"""What the emoji evaluation asks of a model: answers, drawings and reconstructions, in batches.

Dims: N pictures, S picture side, B batch, T prompt length, P image tokens.

All of it is the library's own: drawings are those of `janus-jax generate`, bit for bit, since they
do not depend on the batch; answers are those of `janus-jax chat`, many conversations a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from PIL import Image

from janus_jax import Janus, functional
from janus_jax.generate import text
from janus_jax.generate.image import decode_codes
from janus_jax.generate.sampling import Sampling, bucket_length
from janus_jax.processing import (
    Turn,
    chat_prompt,
    image_index,
    left_pad,
    to_uint8,
    understanding_pixels,
)

Progress = Callable[[int, int], None]

# The longest name is 22 tokens of the emoji vocabulary.
MAX_ANSWER = 32
_CONVERSATIONS = 128
_PICTURES = 16


def answer(
    model: Janus,
    questions: Sequence[str],
    pictures: np.ndarray,
    progress: Progress | None = None,
) -> list[str]:
    """Answers one question about each picture, the likeliest token each time.

    Args:
        model: The model.
        questions: N questions.
        pictures: uint8 [N, S, S, 3].
        progress: Called with (answered, N).

    Returns:
        N answers without outer white space, cut at `MAX_ANSWER` tokens.
    """
    size = model.config.vision.num_patches
    prompts = [
        chat_prompt(
            model.tokenizer,
            [Turn("user", question, num_images=1)],
            roles=model.processor.roles,
            system=model.processor.system_prompt,
            num_image_tokens=size,
        )
        for question in questions
    ]
    length = bucket_length(max(len(prompt.ids) for prompt in prompts))
    how, eos = Sampling(np.float32(0)), np.int32(model.tokenizer.eos)
    # Greedy answers use no randomness, but the sampler wants its keys.
    batch = min(_CONVERSATIONS, len(prompts))
    keys_from = (np.uint32(0), np.zeros((batch, 2), np.uint32), np.zeros(batch, np.int32))
    answers: list[str] = []
    for chosen in _batches(len(prompts), batch):
        rows = [prompts[i] for i in chosen]
        ids, mask, positions = left_pad([row.ids for row in rows], model.tokenizer.pad, length)
        spans, shifts = [row.image_spans for row in rows], [length - len(row.ids) for row in rows]
        state = text.begin(
            model.graphdef,
            model.params,
            ids,
            mask,
            positions,
            np.stack([_understood(model, pictures[i]) for i in chosen]),
            image_index(spans, length, size, shifts),
            keys_from,
            eos,
            how,
            slots=length + MAX_ANSWER,
        )
        # Copied, because `advance` takes the state's buffers over.
        first = np.array(state.token)[:, None]
        _, rest, _ = text.advance(
            model.graphdef,
            model.params,
            state,
            np.int32(MAX_ANSWER),
            eos,
            how,
            piece=MAX_ANSWER - 1,
        )
        for row in np.concatenate([first, np.asarray(rest)], axis=1):
            end = np.flatnonzero(row == eos)
            answers.append(model.tokenizer.decode(row[: end[0]] if len(end) else row).strip())
        if progress is not None:
            progress(min(len(answers), len(prompts)), len(prompts))
    return answers[: len(prompts)]


def draw(
    model: Janus,
    prompts: Sequence[str],
    *,
    seed: int,
    cfg: float,
    temperature: float,
    progress: Progress | None = None,
) -> np.ndarray:
    """Draws one picture of each prompt.

    Args:
        model: The model.
        prompts: N texts.
        seed: Of the sampling.
        cfg: Guidance weight.
        temperature: Of the sampling.
        progress: Called with (codes drawn, codes in all).

    Returns:
        uint8 [N, S, S, 3].
    """
    codes = model.generate_codes(
        prompts, cfg=cfg, temperature=temperature, seed=seed, progress=progress
    )
    return _decoded(model, codes[:, 0])


def reconstruct(model: Janus, pictures: np.ndarray) -> np.ndarray:
    """Pictures after the VQ tokenizer: the best that drawings can be.

    Args:
        model: The model.
        pictures: uint8 [N, S, S, 3].

    Returns:
        uint8 [N, S, S, 3].
    """
    parts = []
    for chosen in _batches(len(pictures), _PICTURES):
        pixels = pictures[chosen].astype(np.float32) / np.float32(127.5) - np.float32(1)
        parts.append(np.asarray(_encode(model.graphdef, model.params, pixels)))
    return _decoded(model, np.concatenate(parts)[: len(pictures)])


_encode = functools.partial(jax.jit, static_argnums=0)(functional.vq_encode)


def _decoded(model: Janus, codes: np.ndarray) -> np.ndarray:
    return to_uint8(decode_codes(model.graphdef, model.params, codes, _PICTURES))


def _understood(model: Janus, picture: np.ndarray) -> np.ndarray:
    return understanding_pixels(Image.fromarray(picture), model.processor.image)


def _batches(count: int, size: int) -> list[np.ndarray]:
    """Indices 0 to count - 1; the last batch is filled up with the last one, so that every batch
    has one shape and one program."""
    return [np.minimum(np.arange(i, i + size), count - 1) for i in range(0, count, size)]
