"""JSON from files that nobody vouches for: bounded, and without keys that are set twice."""

import json
from pathlib import Path
from typing import Any

from convert.readers.names import listed
from janus_jax.errors import InputError


def parse_object(text: bytes, file: Path, what: str) -> dict[str, Any]:
    """Parse a JSON object. The caller bounds the length of `text`.

    Args:
        text: UTF-8.
        file: For messages.
        what: The part of the file that `text` is, for messages: "header", "index".

    Raises:
        InputError: Not UTF-8, not JSON, not an object, nested too deeply, or keys set twice.
    """
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                twice.append(key)
            result[key] = value
        return result

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise InputError(f"{file}: the JSON of the {what} is nested too deeply") from None
    except ValueError as error:
        # Of a decoding error only the reason: the message would quote the bytes.
        reason = getattr(error, "msg", None) or getattr(error, "reason", None) or "a value"
        raise InputError(f"{file}: the {what} is not valid JSON ({reason})") from None
    if twice:
        raise InputError(f"{file}: keys set twice in the {what}: {listed(twice)}")
    if not isinstance(parsed, dict):
        raise InputError(f"{file}: the {what} is a JSON {type(parsed).__name__}", "a JSON object")
    return parsed
