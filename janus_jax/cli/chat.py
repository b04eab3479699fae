"""``janus-jax chat``: answers a question, or many, about pictures or without."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from janus_jax.cli.common import check_mesh, check_model, load, name_flag
from janus_jax.errors import InputError
from janus_jax.generate.settings import check_settings

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass(frozen=True)
class Chat:
    """Ask about pictures, or without any.

    janus-jax chat "What is this?" --image pictures/red-apple-seed0-0.png

    janus-jax chat "这是什么？" --image apple.png --json

    janus-jax chat --image apple.png

    The answer appears as it is made. Without a question, lines are read from the keyboard or a pipe
    and answered one by one, each with all before it in view; /help lists what else can be typed.

    Attributes:
        question: What to ask; stands before --image, which would take it for a file.
        image: Picture files, in the order the model shall see them.
        model: The shipped model `emoji`, `debug` (random weights), a model directory, or PyTorch
            weights to be converted on first use: a directory, or a Hugging Face id with optional
            @revision.
        max_tokens: Longest answer, in tokens.
        temperature: Spread of the sampling; 0 takes the likeliest word each time.
        top_k: Draw from the K likeliest tokens only.
        top_p: Draw from the fewest likeliest tokens that hold this probability only.
        seed: Same seed, same answer; matters above temperature 0.
        system: System prompt; by default the one the model was trained with.
        dtype: Precision of the weights; by default float32 on a CPU, bfloat16 elsewhere. int8
            takes 55 to 65% of bfloat16's memory.
        mesh: Spread the model over all devices, such as fsdp=2,tensor=4.
        json: Print {"text": ...} on stdout instead of the bare answer; without QUESTION, one line
            for each that is read, {"error": ...} where it could not be used or was interrupted.
    """

    question: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="QUESTION")] = None
    image: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]], tyro.conf.arg(metavar="FILE...")
    ] = ()
    model: str = "emoji"
    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    system: str | None = None
    dtype: Literal["float32", "bfloat16", "int8"] | None = None
    mesh: str | None = None
    json: bool = False


def run(options: Chat) -> int:
    """Answers the question, or those on stdin.

    Args:
        options: The parsed command line.

    Returns:
        0; 2 where one of several piped questions could not be used.

    Raises:
        InputError: A question, picture, setting or model that cannot be used.
    """
    if options.question is not None and not options.question.strip():
        raise InputError(f"QUESTION is {options.question!r}", "a text that is not empty")
    sampling = {key: getattr(options, key) for key in ("temperature", "top_k", "top_p", "seed")}
    check_settings(flags=True, max_tokens=options.max_tokens, **sampling)
    if () in options.image:
        raise InputError("--image has no file", "one or more picture files")
    check_model(options.model)
    check_mesh(options.mesh)
    images = _load_images(options)

    from janus_jax.cli.repl import Session, write_answer

    model = load(options.model, options.dtype, options.mesh)
    chat = model.start_chat(options.system, **sampling)
    if options.question is None:
        session = Session(chat, max_tokens=options.max_tokens, as_json=options.json, images=images)
        return session.run()
    pieces = chat.ask(options.question, images, max_tokens=options.max_tokens, stream=True)
    write_answer(pieces, as_json=options.json)
    return 0


def _load_images(options: Chat) -> list[Image.Image]:
    from janus_jax.processing.image import load_image

    images = []
    for path in (path for group in options.image for path in group):
        try:
            images.append(load_image(path))
        except InputError as error:
            named = name_flag("image", error)
            if options.question is None and not path.exists():
                # Most likely the question itself, which --image has taken for a file.
                named = InputError(named.what, named.allowed, "put QUESTION before --image")
            raise named from error
    return images
