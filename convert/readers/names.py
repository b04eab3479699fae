"""Names found in files that nobody vouches for: which are accepted, and how messages show them."""

from collections.abc import Iterable
from pathlib import Path

from janus_jax.errors import InputError

MAX_NAME = 512  # Characters; published models stay below 100.

MAX_LISTED = 2_000  # More than a whole model; a hostile file can offend a million times.


def is_plain(name: object) -> bool:
    """Whether a name is text of sensible length that a terminal, a log and a path can carry."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable()


def shown(value: object) -> str:
    """A value from a file as it appears in a message: quoted, escaped and short."""
    if not isinstance(value, str):
        return type(value).__name__
    return repr(value if len(value) <= 80 else value[:77] + "...")


def listed(values: Iterable[object]) -> str:
    """All values, counted, for messages that name every offender."""
    names = [shown(value) for value in values]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"({len(names)}) {', '.join(names[:MAX_LISTED])}{more}"


def check_tensor_names(names: Iterable[object], file: Path) -> None:
    """Refuses names that are empty, overlong, not text or not printable, all at once.

    Raises:
        InputError: Names every offender, escaped.
    """
    offenders = [name for name in names if not is_plain(name)]
    if offenders:
        raise InputError(
            f"{file}: unusable tensor names {listed(offenders)}",
            f"printable text of 1 to {MAX_NAME} characters",
        )
