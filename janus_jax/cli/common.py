"""What the inference commands share."""

from __future__ import annotations

import contextlib
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from janus_jax.errors import InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from janus_jax.api import Janus

EXIT_TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM unwind the stack, as Ctrl-C does, so that what is half written is removed."""

    def stop(*_: Any) -> None:
        end_quietly()
        print("janus-jax: terminated", file=sys.stderr)
        raise SystemExit(EXIT_TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_quietly() -> None:
    """For a process that was told to stop, which has said so in one line.

    What it cuts short in a library, such as Orbax's event loops, complains as it is freed.
    """
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore")


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


def check_mesh(text: str | None) -> None:
    """Refuses a mesh that cannot be, before anything heavy is loaded.

    Raises:
        InputError: Not the form of `fsdp=2,tensor=4`.
    """
    from janus_jax.sharding import parse_mesh

    if text is not None:
        try:
            parse_mesh(text)
        except InputError as error:
            raise name_flag("mesh", error) from error


def load(name: str, dtype: str | None, mesh: str | None = None) -> Janus:
    """Loads the model, onto the mesh of all devices that `mesh` describes.

    Raises:
        InputError: Damaged files, files that do not belong together, or a mesh of another number
            of devices than there are.
    """
    from janus_jax.api import Janus

    places = mesh_of_all_devices(mesh)
    try:
        return Janus.from_pretrained(name, dtype=dtype, mesh=places)
    except InputError as error:
        raise name_flag("model", error) from error


def mesh_of_all_devices(text: str | None) -> Mesh | None:
    """The mesh that `--mesh` describes; None for one device.

    Raises:
        InputError: Not the form of `fsdp=2,tensor=4`, or another number of devices than there are.
    """
    from janus_jax.sharding import make_mesh, parse_mesh

    if text is None:
        return None
    try:
        return make_mesh(parse_mesh(text))
    except InputError as error:
        raise name_flag("mesh", error) from error


@contextlib.contextmanager
def progress_bar(
    label: str, *, nbytes: bool = False
) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr where that is a terminal, else nothing.

    Args:
        label: What is being done.
        nbytes: What is counted are bytes: shows them with their rate.

    Yields:
        What takes (done, in all), or None.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    columns = progress.Progress.get_default_columns()
    if nbytes:
        columns = (*columns, progress.DownloadColumn(), progress.TransferSpeedColumn())
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
