"""``janus-jax chat`` without a question: a conversation at the keyboard or through a pipe.

Answers go to stdout; the prompt sign, notes and errors go to stderr, so a pipe gets answers alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from janus_jax.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from janus_jax.generate.chat import Conversation

EXIT_INPUT = 2
SIGN = "> "
HELP = """\
/image FILE  show a picture with the next question; again for several
/reset       forget the conversation
/help        this text
/quit        end; so does Ctrl-D
Ctrl-C stops an answer. A question that begins with / needs a space before it."""
WELCOME = "Ask a question. /image FILE shows a picture, /help lists the commands, Ctrl-D ends."


def write_answer(pieces: Iterator[str], *, as_json: bool) -> None:
    """Prints an answer on stdout as it is made, or whole as one line of JSON."""
    if as_json:
        print(json.dumps({"text": "".join(pieces).strip()}, ensure_ascii=False), flush=True)
        return
    started = False
    try:
        for piece in pieces:
            # The space after "Assistant:" belongs to the template, not to the answer.
            piece = piece if started else piece.lstrip()
            started = started or bool(piece)
            print(piece, end="", flush=True)
    finally:
        print(flush=True)


class Session:
    """Reads questions and commands until the input ends.

    Attributes:
        failed: A question or command could not be used.
    """

    def __init__(
        self, chat: Conversation, *, max_tokens: int, as_json: bool, images: Sequence[Image.Image]
    ):
        """Starts a session.

        Args:
            chat: The conversation to carry on.
            max_tokens: Most tokens of an answer.
            as_json: Print every answer as one line of JSON.
            images: Pictures for the first question.
        """
        self._chat, self._max_tokens, self._json = chat, max_tokens, as_json
        self._images = list(images)
        self._keyboard = sys.stdin.isatty()
        self.failed = False

    def run(self) -> int:
        """Answers until /quit or the end of the input.

        Returns:
            0; 2 where the input was no keyboard and something in it could not be used.
        """
        _prepare_stdin(self._keyboard)
        self._say(WELCOME)
        while (line := self._next_line()) is not None:
            try:
                if self._handle(line) == "quit":
                    break
            except InputError as error:
                self.failed = True
                print(f"janus-jax: error: {error}", file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                print("(stopped)", file=sys.stderr, flush=True)
        return EXIT_INPUT if self.failed and not self._keyboard else 0

    def _next_line(self) -> str | None:
        """The next line; None at the end. Ctrl-C at the keyboard empties the line."""
        while self._keyboard:
            try:
                if sys.stdout.isatty():
                    return input(SIGN)  # the one way to have line editing
                print(SIGN, end="", file=sys.stderr, flush=True)
                return sys.stdin.readline() or None
            except EOFError:
                print(file=sys.stderr)
                return None
            except KeyboardInterrupt:
                print("\n(Ctrl-D ends)", file=sys.stderr, flush=True)
        return sys.stdin.readline() or None

    def _handle(self, line: str) -> str | None:
        if not line.strip():
            return None
        if not line.startswith("/"):
            self._ask(line.strip())
            return None
        command, _, rest = line.strip().partition(" ")
        match command, rest.strip():
            case "/quit", "":
                return "quit"
            case "/help", "":
                print(HELP, file=sys.stderr, flush=True)
            case "/reset", "":
                self._chat.reset()
                self._images = []
                self._say("(new conversation)")
            case "/image", path:
                self._add_image(path)
            case _:
                raise InputError(
                    f"{line.strip()!r} is no command",
                    "/image FILE, /reset, /help, /quit",
                    "put a space before a question that begins with /",
                )
        return None

    def _ask(self, question: str) -> None:
        turns = len(self._chat.history)
        try:
            pieces = self._chat.ask(
                question, self._images, max_tokens=self._max_tokens, stream=True
            )
            with contextlib.closing(pieces):
                write_answer(pieces, as_json=self._json)
        except (InputError, KeyboardInterrupt) as error:
            if self._json:  # one line a question, so that a script can tell which failed
                print(json.dumps({"error": str(error) or "interrupted"}), flush=True)
            raise
        finally:
            # A turn that was stopped before its first token left no trace: keep its pictures.
            if len(self._chat.history) > turns:
                self._images = []
        if self._chat.ending == "length":
            self._say(f"(cut after {self._max_tokens} tokens, or where the model's positions end)")

    def _add_image(self, path: str) -> None:
        from janus_jax.processing.image import load_image

        if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
            path = path[1:-1]
        if not path:
            raise InputError("/image has no file", "a picture file")
        try:
            self._images.append(load_image(Path(path).expanduser()))
        except InputError as error:
            raise InputError(f"/image: {error.what}", error.allowed, error.fix) from error
        count = len(self._images)
        self._say(f"({count} picture{'s' * (count > 1)} with the next question)")

    def _say(self, note: str) -> None:
        if self._keyboard:
            print(note, file=sys.stderr, flush=True)


def _prepare_stdin(keyboard: bool) -> None:
    """Line editing at the keyboard; a line that is not UTF-8 is an error of that line alone."""
    if keyboard:
        with contextlib.suppress(ImportError):  # some builds of Python lack it
            import readline  # noqa: F401  (its import changes what `input` does)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
