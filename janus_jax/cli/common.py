"""What the inference commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus_jax.errors import InputError

if TYPE_CHECKING:
    from janus_jax.api import Janus


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
