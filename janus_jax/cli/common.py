"""What the inference commands share."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from janus_jax.errors import InputError

if TYPE_CHECKING:
    from janus_jax.api import Janus

EXIT_TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM unwind the stack, as Ctrl-C does, so that what is half written is removed."""

    def stop(*_: Any) -> None:
        print("janus-jax: terminated", file=sys.stderr)
        raise SystemExit(EXIT_TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def name_flag(flag: str, error: InputError) -> InputError:
    """The same complaint, naming the flag it is about."""
    return InputError(f"--{flag}: {error.what}", error.allowed, error.fix)


def check_model(name: str) -> None:
    """Refuses a model that does not exist, before anything heavy is imported.

    Raises:
        InputError: No such model.
    """
    from janus_jax.locate import find_model

    if name != "debug":
        try:
            find_model(name)
        except InputError as error:
            raise name_flag("model", error) from error


def load(name: str, dtype: str | None) -> Janus:
    """Loads the model.

    Raises:
        InputError: Damaged files, or files that do not belong together.
    """
    from janus_jax.api import Janus

    try:
        return Janus.from_pretrained(name, dtype=dtype)
    except InputError as error:
        raise name_flag("model", error) from error
