"""The session of `janus-jax chat`, in this process through a pipe, and in its own on a terminal."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from janus_jax import Janus
from janus_jax.api import Conversation
from janus_jax.cli import main, repl


@pytest.fixture(scope="module")
def model(debug_dir) -> Janus:
    return Janus.from_pretrained(debug_dir)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a red picture.png"
    Image.new("RGB", (40, 30), (255, 0, 0)).save(path)
    return path


@pytest.fixture
def piped(debug_dir, capsys, monkeypatch):
    def call(text: str | bytes, *arguments: str) -> tuple[int, list[str], list[str]]:
        raw = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        status = main.run(["chat", "--model", str(debug_dir), "--max-tokens", "12", *arguments])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return call


def answers(lines: list[str]) -> list[str]:
    return [json.loads(line)["text"] for line in lines]


def test_piped_questions_are_one_conversation(piped, model):
    chat = model.start_chat()
    want = [chat.ask(question, max_tokens=12) for question in ("What?", "And now?")]
    status, out, err = piped("What?\n\n  And now?\n", "--json")  # the end of the input ends it
    assert (status, answers(out), err) == (0, want, [])
    chat.reset()
    want += [chat.ask("What?", max_tokens=12)]
    status, out, err = piped("What?\nAnd now?\n/reset\nWhat?\n/quit\nnever\n", "--json")
    assert (status, answers(out), err) == (0, want, [])
    assert want[0] == want[2] != want[1]


def test_answers_stream_as_plain_text(piped, model):
    status, out, err = piped("What?\n")
    assert (status, "\n".join(out).strip(), err) == (0, model.chat("What?", max_tokens=12), [])


def test_pictures_go_with_the_next_question(piped, model, picture, tmp_path):
    other = tmp_path / "blue.png"
    Image.new("RGB", (10, 30), (0, 0, 255)).save(other)
    chat = model.start_chat()
    want = [
        chat.ask("What?", [picture, other], max_tokens=12),
        chat.ask("And now?", max_tokens=12),
    ]
    typed = f'/image {picture}\n/image "{other}"\nWhat?\nAnd now?\n'
    assert answers(piped(typed, "--json")[1]) == want
    typed = f"/image {other}\nWhat?\nAnd now?\n"
    assert answers(piped(typed, "--json", "--image", str(picture))[1]) == want
    # A reset forgets the pictures that were not asked about yet, too.
    typed = f"/image {picture}\n/reset\nWhat?\n"
    assert answers(piped(typed, "--json")[1]) == [model.chat("What?", max_tokens=12)]


def test_errors_are_one_line_each_and_do_not_end_the_session(piped, model, tmp_path):
    gone = tmp_path / "gone.png"
    lines = ["/foo", "/reset now", "/image", f"/image {gone}", "word " * 600, "ab\udcff", "What?"]
    status, out, err = piped("\n".join(lines).encode(errors="surrogateescape"), "--json")
    assert status == 2, "a script must learn that something failed"
    # One line for each question, none for the commands.
    *failed, answer = map(json.loads, out)
    assert [set(line) for line in failed] == [{"error"}] * 2
    assert "too long" in failed[0]["error"] and "not valid Unicode" in failed[1]["error"]
    assert answer == {"text": model.chat("What?", max_tokens=12)}
    expected = ["'/foo' is no command", "/reset now", "/image has no file"]
    expected += ["does not exist", "too long", "not valid Unicode"]
    assert len(err) == len(expected)
    for line, named in zip(err, expected, strict=True):
        assert line.startswith("janus-jax: error: ") and named in line


def test_a_space_before_a_slash_makes_it_a_question(piped, model):
    status, out, _ = piped(" /quit is a word\n/help\n", "--json")
    assert (status, answers(out)) == (0, [model.chat("/quit is a word", max_tokens=12)])


def test_an_interrupt_stops_the_answer_but_not_the_session(piped, model, monkeypatch, picture):
    real = repl.write_answer
    calls = []

    def interrupted(pieces, *, as_json):
        calls.append(1)
        if len(calls) == 1:
            next(pieces)
            raise KeyboardInterrupt
        if len(calls) == 2:
            raise KeyboardInterrupt  # before the first piece
        real(pieces, as_json=as_json)

    monkeypatch.setattr(repl, "write_answer", interrupted)
    status, out, err = piped(f"What?\n/image {picture}\nAnd?\nAnd?\n", "--json")
    assert (status, err) == (0, ["(stopped)"] * 2)
    assert [json.loads(line) for line in out[:2]] == [{"error": "interrupted"}] * 2
    chat = model.start_chat()
    stream = chat.ask("What?", max_tokens=12, stream=True)
    next(stream)
    stream.close()
    # The second question left no trace, and its picture waited for the third.
    assert answers(out[2:]) == [chat.ask("And?", [picture], max_tokens=12)]


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str):
        self.fd, other = pty.openpty()
        self.seen = ""
        # Opening the terminal makes it the controlling one, so that Ctrl-C becomes a signal.
        program = (
            "import os; os.close(os.open(os.ttyname(0), os.O_RDWR)); "
            "from janus_jax.cli.main import main; main()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        )
        os.close(other)

    def until(self, text: str, seconds: float = 120.0) -> str:
        """Reads up to and including `text`, which must come; returns what was read."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{text!r} did not come, but {self.seen!r}"
            try:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
            except OSError as error:  # Linux says so when the other side is closed
                raise AssertionError(f"{text!r} did not come, but {self.seen!r}") from error
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        """Types Ctrl-D until the command ends; returns its status.

        Between two lines the terminal is for a moment in the mode in which a program reads whole
        lines. A Ctrl-D of that moment means nothing to readline.
        """
        for _ in range(30):
            self.type("\x04")
            try:
                return self.process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                continue
        self.process.kill()
        raise AssertionError(f"Ctrl-D did not end it: {self.seen!r}")


def test_a_terminal_session(debug_dir, picture):
    terminal = Terminal("chat", "--model", str(debug_dir), "--max-tokens", "100000")
    assert "Ctrl-D ends" in terminal.until(repl.SIGN)
    terminal.type("/help\n")
    assert "/image FILE" in terminal.until("Ctrl-C stops an answer")
    terminal.until(repl.SIGN)
    terminal.type("half a line\x03")
    terminal.until("(Ctrl-D ends)")
    terminal.until(repl.SIGN)
    terminal.type(f"/image {picture}\n")
    terminal.until("(1 picture with the next question)")
    terminal.until(repl.SIGN)
    terminal.type("What?\n")
    terminal.until(repl.SIGN)
    terminal.type("/image gone.png\n")
    terminal.until("janus-jax: error: /image: ")
    terminal.until(repl.SIGN)
    assert terminal.end() == 0
    os.close(terminal.fd)


def test_a_keyboard_interrupt_during_an_answer(debug_dir, monkeypatch, capsys):
    """The real signal, in the middle of an answer."""
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What?\nAnd?\n"), encoding="utf-8")
    )
    real = Conversation._tokens

    def tokens(self, *arguments):
        for i, token in enumerate(real(self, *arguments)):
            if i == 3 and len(self.history) == 0:
                signal.raise_signal(signal.SIGINT)
            yield token

    monkeypatch.setattr(Conversation, "_tokens", tokens)
    status = main.run(["chat", "--model", str(debug_dir), "--max-tokens", "12", "--json"])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "(stopped)\n")
    assert [set(json.loads(line)) for line in out.splitlines()] == [{"error"}, {"text"}]
