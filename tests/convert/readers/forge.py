"""Builds pickles, zip archives and safetensors files byte by byte, honest ones and forged ones."""

import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from convert.readers.torch_bin import open_torch_bin
from janus_jax.errors import InputError

# Pickles: each function gives the instructions that leave one value on the stack.

PROTO = b"\x80\x02"
ORDERED_DICT = b"ccollections\nOrderedDict\n"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def integers(values: Iterable[int]) -> bytes:
    return tuple_(*map(integer, values))


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_(*arguments) + b"R"


def dict_(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def storage(kind: bytes | str = "FloatStorage", key: str = "0", size: int = 6) -> bytes:
    kind = name("torch", kind) if isinstance(kind, str) else kind
    parts = (text("storage"), kind, text(key), text("cpu"), integer(size))
    return tuple_(*parts) + b"Q"


def tensor(
    stored: bytes | None = None,
    offset: bytes | int = 0,
    shape: bytes | tuple[int, ...] = (2, 3),
    strides: bytes | tuple[int, ...] = (3, 1),
    hooks: bytes = ORDERED_DICT + b")R",
    more: tuple[bytes, ...] = (),
    function: str = "_rebuild_tensor_v2",
) -> bytes:
    return call(
        name("torch._utils", function),
        storage() if stored is None else stored,
        integer(offset) if isinstance(offset, int) else offset,
        shape if isinstance(shape, bytes) else integers(shape),
        strides if isinstance(strides, bytes) else integers(strides),
        b"\x89",
        hooks,
        *more,
    )


def pickled(value: bytes) -> bytes:
    return PROTO + value + b"."


# Zip archives.


@dataclass
class Part:
    """A record. `local` and `central` replace fields of its two descriptions, to forge them."""

    name: bytes
    content: bytes
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    descriptor: bytes = b""


def zip_of(parts: list[Part], before: bytes = b"", after: bytes = b"", **end: int) -> bytes:
    """An archive of stored records; `end` replaces fields of the end of its directory."""
    body, directory = before, b""
    for part in parts:
        honest = {
            "flags": 0,
            "method": 0,
            "crc": zlib.crc32(part.content),
            "packed": len(part.content),
            "size": len(part.content),
            "name": part.name,
            "extra": b"",
            "magic": b"PK\3\4",
        }
        local = honest | part.local
        central = honest | {"magic": b"PK\1\2", "header": len(body), "disk": 0} | part.central
        directory += struct.pack(
            "<4s6H3I5H2I",
            central["magic"], 0, 0, central["flags"], central["method"], 0, 0, central["crc"],
            central["packed"], central["size"], len(central["name"]), len(central["extra"]), 0,
            central["disk"], 0, 0, central["header"],
        ) + central["name"] + central["extra"]  # fmt: skip
        body += struct.pack(
            "<4s5H3I2H",
            local["magic"], 0, local["flags"], local["method"], 0, 0, local["crc"],
            local["packed"], local["size"], len(local["name"]), len(local["extra"]),
        ) + local["name"] + local["extra"] + part.content + part.descriptor  # fmt: skip
    fields = {
        "disk": 0, "first_disk": 0, "here": len(parts), "count": len(parts),
        "size": len(directory), "start": len(body), "comment": 0,
    } | end  # fmt: skip
    return body + directory + struct.pack("<4s4H2IH", b"PK\5\6", *fields.values()) + after


def archive(
    pickle: bytes, storages: dict[str, bytes] | None = None, root: str = "archive", **others: bytes
) -> list[Part]:
    """The records of a file as torch 2.0 wrote it: no byte order, no alignment, no id."""
    storages = {"0": bytes(24)} if storages is None else storages
    named = {"data.pkl": pickle, **{f"data/{k}": v for k, v in storages.items()}}
    named |= {"version": b"3\n", **others}
    return [Part(f"{root}/{key}".encode(), content) for key, content in named.items()]


def write_bin(path: Path, value: bytes, **kwargs: Any) -> Path:
    """A file of torch.save around the pickle of `value`."""
    path.write_bytes(zip_of(archive(pickled(value), **kwargs)))
    return path


def refuse(path: Path, value: bytes, reason: str, **kwargs: Any) -> None:
    """Asserts that a file of torch.save around this pickle is refused for this reason."""
    write_bin(path, value, **kwargs)
    with pytest.raises(InputError, match=reason) as caught:
        open_torch_bin(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# Safetensors.


def safetensors_of(header: Any, content: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + content


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}
