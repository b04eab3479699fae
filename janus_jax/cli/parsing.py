"""Command lines read by tyro, with its many-line complaints turned into one line."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from janus_jax.errors import InputError
from janus_jax.locate import check_local


def parse(
    kind: Any, argv: Sequence[str], *, prog: str, config: Sequence[Any] = (), default: Any = None
) -> Any:
    """Reads flags into a dataclass.

    Args:
        kind: The dataclass.
        argv: The arguments.
        prog: What the help text calls the program.
        config: Markers of `tyro.conf`, beside the one that all our commands share.
        default: An instance of `kind` with the values of flags that are not given.

    Returns:
        An instance of `kind`.

    Raises:
        InputError: Unusable arguments; an address such as gs://bucket/folder for a `Path`.
        SystemExit: With status 0, after --help.
    """
    box = io.StringIO()
    defaults = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(box):
            found = tyro.cli(
                kind,
                args=list(argv),
                prog=prog,
                config=(tyro.conf.FlagCreatePairsOff, *config),
                **defaults,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(flatten_parse_error(box.getvalue())) from None
    # tyro takes --run_dir for --run-dir.
    flags = {word.partition("=")[0].replace("_", "-") for word in argv}
    for name, path in _paths(found):
        flag = f"--{name.replace('_', '-')}"
        what = flag if flag in flags else name.upper()
        check_local(what, path, "copy it to or from the store yourself")
    return found


def _paths(found: Any, name: str = "") -> Iterator[tuple[str, Path]]:
    """Every path of a command line, with the name of its field: they are all of this machine."""
    if isinstance(found, Path):
        yield name, found
    elif isinstance(found, tuple):
        for value in found:
            yield from _paths(value, name)
    elif dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            yield from _paths(getattr(found, field.name), field.name)


def flatten_parse_error(box: str) -> str:
    """Turns tyro's framed, many-line report into one line.

    Args:
        box: What tyro printed: a title, sections divided by rules, help text for similar flags.

    Returns:
        The complaint, the nearest flag or the subcommands where tyro names them, and where to look.
    """
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ").strip()
        if line.startswith(("╭", "╰")) or not text:
            continue
        if set(text) == {"─"}:
            sections.append([])
        else:
            sections[-1].append(text)
    parts = [" ".join(sections[0]).rstrip(".")]
    for section in sections[1:]:
        first, rest = section[0], section[1:]
        if first.startswith("Perhaps you meant") and rest:
            parts.append(f"did you mean {rest[0].split()[0].rstrip(',')}?")
        elif first.startswith("Available subcommands"):
            parts.append(" ".join(section).lower())
        elif first.startswith("For full helptext"):
            text = " ".join(section)
            parts.append("see " + text[max(text.rfind("janus-jax"), 0) :])
    return "; ".join(parts)
