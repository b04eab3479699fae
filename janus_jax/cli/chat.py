"""``janus-jax chat``: answers one question, about pictures or without."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from janus_jax.cli.common import check_model, load, name_flag
from janus_jax.errors import InputError
from janus_jax.generate.settings import check_settings


@dataclasses.dataclass(frozen=True)
class Chat:
    """Ask about pictures, or without any.

    janus-jax chat "What is this?" --image pictures/red-apple-seed0-0.png

    janus-jax chat "这是什么？" --image apple.png --json

    The answer appears as it is made.

    Attributes:
        question: What to ask; stands before --image, which would take it for a file.
        image: Picture files, in the order the model shall see them.
        model: The shipped model `emoji`, `debug` (random weights), a model directory, or PyTorch
            weights to be converted on first use: a directory, or a Hugging Face id with optional
            @revision.
        max_tokens: Longest answer, in tokens.
        temperature: Spread of the sampling; 0 takes the likeliest word each time.
        seed: Same seed, same answer; matters above temperature 0.
        json: Print {"text": ...} on stdout instead of the bare answer.
    """

    question: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="QUESTION")]
    image: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]], tyro.conf.arg(metavar="FILE...")
    ] = ()
    model: str = "emoji"
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    json: bool = False


def run(options: Chat) -> int:
    """Answers the question.

    Args:
        options: The parsed command line.

    Returns:
        0.

    Raises:
        InputError: A question, picture, setting or model that cannot be used.
    """
    if not options.question.strip():
        raise InputError(f"QUESTION is {options.question!r}", "a text that is not empty")
    check_settings(
        flags=True,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )
    if () in options.image:
        raise InputError("--image has no file", "one or more picture files")
    check_model(options.model)
    from janus_jax.processing.image import load_image

    pictures = []
    for path in (path for group in options.image for path in group):
        try:
            pictures.append(load_image(path))
        except InputError as error:
            raise name_flag("image", error) from error

    model = load(options.model, None)
    pieces = model.chat(
        options.question,
        pictures,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        stream=True,
    )
    if options.json:
        print(json.dumps({"text": "".join(pieces).strip()}, ensure_ascii=False))
        return 0
    started = False
    for piece in pieces:
        # The space after "Assistant:" belongs to the template, not to the answer.
        piece = piece if started else piece.lstrip()
        started = started or bool(piece)
        print(piece, end="", flush=True)
    print()
    return 0
