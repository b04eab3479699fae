"""Prompts as ids, built from segments.

The template's control tokens are written as ids here and nowhere else; the text between them is
encoded as one plain segment with every control token protected. So nobody can type a role tag or an
image, and on ordinary text the ids equal those of encoding the whole rendered prompt, which is what
the weights were trained on. Where the images are is recorded while building, never searched.

Dims: T prompt length, B batch, P tokens an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from janus_jax.errors import InputError
from janus_jax.processing.tokenizer import Tokenizer

UNDERSTANDING_SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
"""The system prompt that the published weights were trained with, for understanding."""


@dataclass(frozen=True)
class Roles:
    """How a prompt names the speakers. A wrong name silently makes another prompt."""

    user: str
    assistant: str


JANUS = Roles("User", "Assistant")
"""Janus-1.3B: plain words."""
JANUS_PRO = Roles("<|User|>", "<|Assistant|>")
"""Janus-Pro and emoji: control tokens."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation, its images before its text."""

    role: Literal["user", "assistant"]
    text: str
    num_images: int = 0


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as ids.

    Attributes:
        ids: int32 [T].
        image_spans: (start, length) of each image's placeholder slots, in order; the markers around
            them are not part of the span.
    """

    ids: np.ndarray
    image_spans: tuple[tuple[int, int], ...]


class _Segments:
    """Collects ids and text; adjacent pieces of text are encoded together."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._text = ""
        self._ids = [tokenizer.bos]
        self.image_spans: list[tuple[int, int]] = []

    def text(self, text: str) -> None:
        self._text += text

    def control(self, *ids: int) -> None:
        self._flush()
        self._ids += ids

    def role(self, name: str) -> None:
        # A role tag is a control token where the vocabulary has it as one, as in whole-string
        # encoding; "User" of Janus-1.3B is a word.
        token = self._tokenizer.token_id(name)
        if token is None:
            self.text(name)
        else:
            self.control(token)

    def image(self, num_image_tokens: int) -> None:
        self.control(self._tokenizer.image_start)
        self.image_spans.append((len(self._ids), num_image_tokens))
        self._ids += [self._tokenizer.image_placeholder] * num_image_tokens
        self.control(self._tokenizer.image_end)

    def ids(self) -> np.ndarray:
        self._flush()
        return np.array(self._ids, np.int32)

    def _flush(self) -> None:
        if self._text:
            self._ids += self._tokenizer.encode(self._text)
            self._text = ""


def chat_prompt(
    tokenizer: Tokenizer,
    turns: Sequence[Turn],
    *,
    roles: Roles,
    system: str,
    num_image_tokens: int,
) -> Prompt:
    r"""A conversation in the template of the reference implementation.

    `{system}\n\n{user}: {text}\n\n{assistant}: {text}<EOS>{user}: ...`, messages and the whole
    stripped of outer white space; a message without text or image renders as `{role}:`. An open
    user turn is followed by `{assistant}:`, so the model answers next. Each image is the begin
    marker, its slots, the end marker and a line break, before the text.

    Args:
        tokenizer: The model's tokenizer.
        turns: User and assistant in turn, the user first.
        roles: The names of the speakers.
        system: System prompt; may be empty.
        num_image_tokens: Slots an image takes, P.

    Returns:
        The prompt; it starts with BOS.

    Raises:
        InputError: There is no turn, no turn has text or an image, the turns do not alternate, an
            assistant turn has images, or a text or the system prompt is none or not valid Unicode.
    """
    for name, text in [("system prompt", system), *(("text of a turn", t.text) for t in turns)]:
        if not isinstance(text, str):
            raise InputError(f"the {name} is given as {type(text).__name__}", "a text")
    contents = [turn.text.strip() for turn in turns]
    if not any(text or turn.num_images for text, turn in zip(contents, turns, strict=True)):
        raise InputError("the prompt is empty", "a text, an image or both")
    segments = _Segments(tokenizer)
    if system.strip():
        segments.text(system.lstrip() + "\n\n")
    for i, turn in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if turn.role != expected:
            raise InputError(f"turn {i + 1} has the role {turn.role!r}", f"{expected!r} here")
        if turn.num_images < 0 or (turn.num_images and turn.role == "assistant"):
            raise InputError(
                f"turn {i + 1} ({turn.role}) has {turn.num_images} images", "images of the user"
            )
        segments.role(roles.user if turn.role == "user" else roles.assistant)
        segments.text(":")
        if not turn.num_images and not contents[i]:
            continue
        _message(segments, turn, num_image_tokens)
        if turn.role == "user":
            segments.text("\n\n")
        else:
            segments.control(tokenizer.eos)
    if turns[-1].role == "user":
        segments.role(roles.assistant)
        segments.text(":")
    return Prompt(segments.ids(), tuple(segments.image_spans))


def _message(segments: _Segments, turn: Turn, num_image_tokens: int) -> None:
    """` ` and the images and text of a turn, stripped as one message."""
    segments.text(" ")
    for i in range(turn.num_images):
        if i:
            segments.text("\n")
        segments.image(num_image_tokens)
    if not turn.num_images:
        segments.text(turn.text.strip())
    elif turn.text.strip():
        segments.text("\n" + turn.text.rstrip())


def generation_prompt(tokenizer: Tokenizer, text: str, *, roles: Roles) -> np.ndarray:
    """The prompt after which the model draws: BOS, one user turn, `{assistant}:`, begin-of-image.

    Generation has no system prompt.

    Args:
        tokenizer: The model's tokenizer.
        text: What to draw.
        roles: The names of the speakers.

    Returns:
        int32 [T].

    Raises:
        InputError: The text is none, empty or not valid Unicode.
    """
    if not isinstance(text, str):
        raise InputError(f"the prompt is given as {type(text).__name__}", "a text")
    if not text.strip():
        raise InputError("the prompt is empty", "a description of the picture to draw")
    prompt = chat_prompt(
        tokenizer, [Turn("user", text)], roles=roles, system="", num_image_tokens=0
    )
    return np.append(prompt.ids, np.int32(tokenizer.image_start))


def unconditional(ids: np.ndarray, pad_id: int) -> np.ndarray:
    """The row without a caption, for classifier-free guidance and for caption drop in training.

    All but the first (BOS) and the last token (begin-of-image) become pad. As in the reference
    implementation these pads ARE attended, at positions 0..T-1: do not mask them.

    Args:
        ids: int [T], a generation prompt.
        pad_id: Id of the padding token.

    Returns:
        int32 [T], a new array.
    """
    row = np.array(ids, np.int32)
    row[1:-1] = pad_id
    return row


def left_pad(
    rows: Sequence[np.ndarray], pad_id: int, length: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Puts prompts of different length into one batch, all ending in the last column.

    Args:
        rows: B rows of int ids, none empty.
        pad_id: Id of the padding token.
        length: T; the longest row by default.

    Returns:
        ids int32 [B, T]; mask bool [B, T], True at real tokens; positions int32 [B, T], counted
        from 0 at each row's first token and 0 in the padding.

    Raises:
        InputError: There is no row, one is empty, or one is longer than `length`.
    """
    sizes = [len(row) for row in rows]
    if not sizes or min(sizes) == 0:
        raise InputError("a batch has no prompt or an empty one", "at least one token a prompt")
    length = max(sizes) if length is None else length
    if max(sizes) > length:
        raise InputError(
            f"a prompt has {max(sizes)} tokens", f"at most {length}", "shorten the prompt"
        )
    ids = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :] = row
        mask[i, length - len(row) :] = True
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)
    return ids, mask, positions


def image_index(
    spans_per_row: Sequence[Sequence[tuple[int, int]]],
    length: int,
    num_image_tokens: int,
    offsets: Sequence[int] | None = None,
) -> np.ndarray:
    """Which image feature each position takes its embedding from.

    Args:
        spans_per_row: For each of B rows, the (start, length) spans of its images; the images of
            the batch are numbered row by row.
        length: T, of the padded batch.
        num_image_tokens: P.
        offsets: What left padding added before each row; 0 by default.

    Returns:
        int32 [B, T]: row of the features [N, P, D] flattened to [N * P, D], or -1 where the token's
        own embedding is used.

    Raises:
        ValueError: A span has another length than P or does not lie inside T.
    """
    index = np.full((len(spans_per_row), length), -1, np.int32)
    offsets = [0] * len(spans_per_row) if offsets is None else offsets
    image = 0
    for b, (spans, offset) in enumerate(zip(spans_per_row, offsets, strict=True)):
        for start, size in spans:
            first = start + offset
            if size != num_image_tokens or first < 0 or first + size > length:
                raise ValueError(
                    f"row {b}: span of {size} at {first}, want {num_image_tokens} inside {length}"
                )
            index[b, first : first + size] = image * size + np.arange(size)
            image += 1
    return index
