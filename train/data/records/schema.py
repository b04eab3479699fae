"""What users write: the fields of a JSONL line, a WebDataset sample or a Parquet row.

    {"image": "cat.png", "caption": "a black cat"}                            picture and caption
    {"image": "cat.png", "turns": [{"role": "user", "text": "Colour?"},
                                   {"role": "assistant", "text": "Black."}]}  questions about it
    {"turns": [...]}                                                          text only

`images` holds several pictures. `conversations` with `from` (`human`, `gpt`) and `value`, as LLaVA
writes them, means `turns`. `<image>` and `<image_placeholder>` in a text are taken out: pictures
always come first. `kind` overrides what the fields suggest, and `id` names the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from janus_jax.errors import InputError
from train.data.records.record import KINDS, Kind, Record

Captions = Literal["generation", "understanding", "both"]

CAPTION_QUESTION = "Describe this image."
"""The question of a caption that is used for understanding."""

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_PLACEHOLDERS = ("<image_placeholder>", "<image>")


class BrokenRecord(InputError):
    """A record that cannot be used; `id` names it and `reason` is a few fixed words to count by."""

    def __init__(self, id: str, reason: str, detail: str = ""):
        super().__init__(f"record {id}: {reason}{f' ({detail})' if detail else ''}")
        self.id = id
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        return type(self), (self.id, self.reason, self.detail)


def parse(
    fields: Any,
    default_id: str,
    load: Callable[[Any], bytes],
    *,
    captions: Captions = "generation",
) -> list[Record]:
    """The records of one line, sample or row.

    Args:
      fields: its fields; unknown ones are ignored, as data sets carry their own.
      default_id: the id where the fields name none.
      load: turns the value of `image` into the bytes of a file.
      captions: what a picture with a caption is for; `both` makes two records of it.

    Raises:
      BrokenRecord: with the id and the reason.
      InputError: what `load` raises of it, which says nothing of the record.
    """
    if not isinstance(fields, Mapping):
        raise BrokenRecord(default_id, "not an object of fields")
    id = str(fields.get("id") or default_id)
    images = _images(fields, id, load)
    turns = _turns(fields, id)
    caption = fields.get("caption") or ("" if turns else fields.get("text") or "")
    if not isinstance(caption, str):
        raise BrokenRecord(id, "caption is not a text")
    caption = caption.strip()
    kind = cast(Kind | None, fields.get("kind"))
    if kind is not None and kind not in KINDS:
        raise BrokenRecord(id, "unknown kind", f"{kind!r}; use {', '.join(KINDS)}")
    if turns:
        kind = kind or ("understanding" if images else "text")
        return [_checked(Record(id, kind, images, turns=turns))]
    if not caption:
        raise BrokenRecord(id, "neither caption nor turns")
    if kind is None and captions == "both":
        return [
            _captioned(f"{id}/generation", "generation", images, caption),
            _captioned(f"{id}/understanding", "understanding", images, caption),
        ]
    return [_captioned(id, kind or cast(Kind, captions), images, caption)]


def _captioned(id: str, kind: Kind, images: tuple[bytes, ...], caption: str) -> Record:
    if kind == "generation":
        return _checked(Record(id, kind, images, caption=caption))
    turns = (("user", CAPTION_QUESTION), ("assistant", caption))
    return _checked(Record(id, kind, images, turns=turns))


def _images(fields: Mapping[str, Any], id: str, load: Callable[[Any], bytes]) -> tuple[bytes, ...]:
    if "image" in fields and "images" in fields:
        raise BrokenRecord(id, "both image and images")
    values = fields.get("images")
    if values is None:
        values = [] if fields.get("image") is None else [fields["image"]]
    if not isinstance(values, list | tuple):
        raise BrokenRecord(id, "images is not a list")
    try:
        return tuple(load(value) for value in values)
    except FileNotFoundError as error:
        raise BrokenRecord(id, "image file is missing", str(error.filename or error)) from error
    except InputError:
        # Not the record's fault: no credentials, or a store that does not answer.
        raise
    except (OSError, ValueError, TypeError) as error:
        raise BrokenRecord(id, "image file cannot be read", str(error)) from error


def _turns(fields: Mapping[str, Any], id: str) -> tuple[tuple[str, str], ...]:
    values = fields.get("turns", fields.get("conversations"))
    if not values:
        return ()
    if not isinstance(values, list | tuple):
        raise BrokenRecord(id, "turns is not a list")
    turns: list[tuple[str, str]] = []
    for value in values:
        if not isinstance(value, Mapping):
            raise BrokenRecord(id, "a turn is not an object")
        role = _ROLES.get(str(value.get("role", value.get("from"))).lower())
        text = value.get("text", value.get("value", value.get("content")))
        if role is None:
            raise BrokenRecord(id, "unknown role", repr(value.get("role", value.get("from"))))
        if not isinstance(text, str):
            raise BrokenRecord(id, "a turn has no text")
        for placeholder in _PLACEHOLDERS:
            text = text.replace(placeholder, "")
        turns.append((role, text.strip()))
    return tuple(turns)


def _checked(record: Record) -> Record:
    """Refuses a record that its kind cannot use."""
    roles = [role for role, _ in record.turns]
    if record.kind == "generation":
        if len(record.images) != 1 or not record.caption:
            raise BrokenRecord(record.id, "generation needs one image and a caption")
        return record
    if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        raise BrokenRecord(record.id, "turns do not go user, assistant, ... and end with assistant")
    if not all(text for role, text in record.turns if role == "assistant"):
        raise BrokenRecord(record.id, "an answer is empty")
    if (record.kind == "text") == bool(record.images):
        needs = "text has no images" if record.images else "understanding needs an image"
        raise BrokenRecord(record.id, needs)
    return record
