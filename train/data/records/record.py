"""One training record, and its bytes in an ArrayRecord shard."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import msgpack
import numpy as np

from janus_jax.errors import InputError

Kind = Literal["understanding", "text", "generation"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Records are read back by later releases too; a change of the layout below raises it.
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Record:
    """What one sample is made of.

    Attributes:
      id: names the record in logs and manifests; unique within a data set.
      kind: `understanding` (turns about pictures), `text` (turns alone) or `generation` (one
        picture and the caption it is to be drawn from).
      images: the pictures' files as they came, undecoded.
      caption: for generation.
      turns: (role, text) pairs, role `user` or `assistant`, ending with `assistant`; for the other
        kinds. Pictures come before the text of the first user turn.
      codes: int32 [P], the picture as image tokens, once `data encode` has made them.
    """

    id: str
    kind: Kind
    images: tuple[bytes, ...] = ()
    caption: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    codes: np.ndarray | None = None

    def with_codes(self, codes: np.ndarray) -> Record:
        """The same record with its picture as image tokens, int32 [P]."""
        return replace(self, codes=np.asarray(codes, np.int32))

    def to_bytes(self) -> bytes:
        """The content of a shard's entry."""
        content: dict[str, Any] = {"v": _VERSION, "id": self.id, "kind": self.kind}
        if self.images:
            content["images"] = list(self.images)
        if self.caption:
            content["caption"] = self.caption
        if self.turns:
            content["turns"] = [list(turn) for turn in self.turns]
        if self.codes is not None:
            content["codes"] = self.codes.astype("<i4").tobytes()
        return cast(bytes, msgpack.packb(content))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "a record") -> Record:
        """Reads what `to_bytes` wrote.

        Args:
          data: the entry.
          name: what the error message calls it.

        Raises:
          InputError: not such an entry.
        """
        try:
            content = msgpack.unpackb(data)
            if content["v"] != _VERSION:
                raise ValueError(f"version {content['v']}")
            if content["kind"] not in KINDS:
                raise ValueError(f"kind {content['kind']!r}")
            codes = content.get("codes")
            return cls(
                id=content["id"],
                kind=content["kind"],
                images=tuple(content.get("images", ())),
                caption=content.get("caption", ""),
                turns=tuple((role, text) for role, text in content.get("turns", ())),
                codes=None if codes is None else np.frombuffer(codes, "<i4"),
            )
        except Exception as error:  # msgpack raises a dozen kinds on bytes that are not its own
            raise InputError(
                f"{name} cannot be read ({type(error).__name__}: {error})",
                fix="pack the data again with this release of janus-jax",
            ) from error
