"""Which numbers the samplers take. Free of JAX, so that bad flags are refused before it loads."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from janus_jax.errors import InputError

MAX_SEED = 2**32 - 1


def _whole(low: int, high: int) -> tuple[Callable[[Any], bool], str]:
    def fits(value: Any) -> bool:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return whole and low <= int(value) <= high

    return fits, f"a whole number from {low} to {high}"


def _number(low: float, high: float, note: str = "") -> tuple[Callable[[Any], bool], str]:
    def fits(value: Any) -> bool:
        return isinstance(value, Real) and low <= float(value) <= high

    return fits, f"a number from {low:g}{note} to {high:g}"


_RULES = {
    "n": _whole(1, 10_000),
    "first": _whole(0, 2**31 - 1),
    "at_once": _whole(1, 10_000),
    "cfg": _number(0, 100),
    "temperature": _number(0, 100, " (greedy)"),
    "top_k": _whole(1, 2**31 - 1),
    "top_p": (
        lambda value: isinstance(value, Real) and 0 < float(value) <= 1,
        "a number above 0, at most 1",
    ),
    "seed": _whole(0, MAX_SEED),
    "max_tokens": _whole(1, 2**20),
}
_OPTIONAL = ("top_k", "top_p", "at_once")


def check_settings(*, flags: bool = False, **values: Any) -> None:
    """Refuses settings outside their range. NumPy's numbers are taken like Python's.

    Args:
      flags: name them as flags of the command line (`--top-k`) instead of arguments (`top_k`).
      **values: `n`, `cfg`, `temperature`, `top_k`, `top_p`, `seed`, `max_tokens`.

    Raises:
      InputError: naming the setting, its value and what is allowed.
    """
    for name, value in values.items():
        fits, allowed = _RULES[name]
        if value is None and name in _OPTIONAL:
            continue
        if not fits(value):
            shown = f"--{name.replace('_', '-')}" if flags else name
            raise InputError(f"{shown} is {value!r}", allowed)
