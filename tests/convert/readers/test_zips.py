"""Archives that are not what torch.save writes, or that say two things at once: all refused."""

import dataclasses
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from convert.readers.torch_bin import open_torch_bin
from janus_jax.errors import InputError
from tests.convert.readers.forge import Part, archive, dict_, pickled, tensor, zip_of

PICKLE = pickled(dict_(w=tensor()))


def parts(**changes) -> list[Part]:
    """The archive of one tensor; `changes` replace fields of its storage's record."""
    found = archive(PICKLE)
    return [
        dataclasses.replace(part, **changes) if part.name == b"archive/data/0" else part
        for part in found
    ]


def refused(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        open_torch_bin(path)
    assert "\n" not in str(caught.value)


def test_the_archive_is_otherwise_sound(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(zip_of(parts()))
    assert open_torch_bin(tmp_path / "w.bin")["w"].shape == (2, 3)
    for sound in (wide(), zip_of(parts(central=FULL | {"extra": SIZES}))):
        (tmp_path / "wide.bin").write_bytes(sound)
        assert open_torch_bin(tmp_path / "wide.bin")["w"].shape == (2, 3)


def nested() -> bytes:
    """A record whose header and bytes lie inside the bytes of another."""
    hidden = b"archive/data/1"
    header = struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0, 0, 0, 0, 0, 0, 0, len(hidden), 0) + hidden
    outer = [*parts(content=header), Part(hidden, b"")]
    at = zip_of(outer).index(header)
    outer[-1] = dataclasses.replace(outer[-1], central={"header": at})
    return zip_of(outer)


def wide(size: int | None = None, end: int = 0) -> bytes:
    """The archive with a zip64 end: of another directory size, or said to be `end` further on."""
    whole = zip_of(parts())
    _, _, _, _, count, length, start, _ = struct.unpack("<4s4H2IH", whole[-22:])
    size = length if size is None else size
    full = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0, 0, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + length + end, 1)
    return whole[:-22] + full + locator + whole[-22:]


FULL = {"size": 2**32 - 1, "packed": 2**32 - 1}
SIZES = b"\1\0\x10\0" + struct.pack("<2Q", 24, 24)
POSTPONED = {"flags": 8}

TRICKS = {
    "compressed": (zip_of(parts(local={"method": 8}, central={"method": 8})), "is compressed"),
    "encrypted": (zip_of(parts(local={"flags": 1}, central={"flags": 1})), "data/0' is encrypted"),
    "two names": (
        zip_of(parts(local={"name": b"archive/data/1"})),
        "data/0' contradicts its own header",
    ),
    "two sizes": (
        zip_of(parts(local={"size": 8, "packed": 8})),
        "data/0' contradicts its own header",
    ),
    "longer than it is": (
        zip_of(parts(local={"size": 4096, "packed": 4096}, central={"size": 4096, "packed": 4096})),
        "data/0' reaches outside the file",
    ),
    "packed is not size": (
        zip_of(parts(central={"packed": 12}, local={"packed": 12})),
        "data/0' is stored, yet has two sizes",
    ),
    "on another disk": (zip_of(parts(central={"disk": 3})), "data/0' has unknown flags"),
    "a record twice": (zip_of([*parts(), *parts()[-1:]]), "named twice.*'archive/version'"),
    "a path upwards": (
        zip_of([*parts(), Part(b"archive/../x", b"")]),
        "unsafe names.*'archive/../x'",
    ),
    "an absolute path": (zip_of([*parts(), Part(b"/etc/x", b"")]), "unsafe names.*'/etc/x'"),
    "a second folder": (zip_of([*parts(), Part(b"other/x", b"")]), "2 folders"),
    "overlapping records": (
        zip_of([*parts(), Part(b"archive/data/1", b"", central={"header": 0})]),
        "data/1' contradicts its own header",
    ),
    "a record inside another": (nested(), "data/1' overlaps another"),
    "no descriptor": (
        zip_of(parts(local=POSTPONED, central=POSTPONED)),
        "data/0' contradicts its descriptor",
    ),
    "a descriptor of another size": (
        zip_of(
            parts(
                local=POSTPONED,
                central=POSTPONED,
                descriptor=struct.pack("<4s3I", b"PK\7\10", zlib.crc32(bytes(24)), 8, 8),
            )
        ),
        "data/0' contradicts its descriptor",
    ),
    "zip64 sizes that are not there": (zip_of(parts(central=FULL)), "data/0' lacks its zip64"),
    "zip64 sizes twice": (
        zip_of(parts(central=FULL | {"extra": SIZES * 2})),
        "data/0' has two zip64 fields",
    ),
    "zip64 sizes beyond the file": (
        zip_of(parts(central=FULL | {"extra": SIZES[:4] + struct.pack("<2Q", 2**63, 2**63)})),
        "data/0' reaches outside the file",
    ),
    "zip64 sizes in one place only": (
        zip_of(parts(central=FULL | {"extra": SIZES}, local={"size": 23, "packed": 23})),
        "data/0' contradicts its own header",
    ),
    "an extra field that overruns": (
        zip_of(parts(central={"extra": b"FB\xff\0"})),
        "data/0' has a damaged extra field",
    ),
    "two ends": (wide(size=7), "two ends of the zip archive contradict each other"),
    "a zip64 end elsewhere": (wide(end=-8), "its zip64 end is misplaced"),
    "a zip64 end outside": (wide(end=2**62), "zip64 end lies outside the file"),
    "more records than the directory": (
        zip_of(parts(), count=99, here=99),
        "an entry of the directory lies outside the file",
    ),
    "a directory elsewhere": (
        zip_of(parts(), start=2**31),
        "does not lie just before the end of the archive",
    ),
    "bytes after the end": (zip_of(parts(), after=b"more"), "does not end as a zip archive does"),
    "no pickle": (zip_of(archive(PICKLE)[1:]), "lacks data.pkl"),
    "big-endian": (zip_of(archive(PICKLE, byteorder=b"big")), "byte order 'big'"),
    "an unknown byte order": (zip_of(archive(PICKLE, byteorder=b"mixed")), "byte order 'mixed'"),
    "no storage": (
        zip_of([p for p in parts() if p.name != b"archive/data/0"]),
        "'w' is in storage '0', which the file lacks",
    ),
    "cut in the middle": (zip_of(parts())[:-40], "does not end as a zip archive does"),
    "nothing but the end": (zip_of([]), "not a zip archive"),
    "text": (b"PK\3\4" + b"not a zip" * 100, "does not end as a zip archive does"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_are_refused(trick: str, tmp_path: Path):
    refused(tmp_path / "w.bin", *TRICKS[trick])


def test_the_legacy_format_is_refused_with_advice(tmp_path: Path):
    path = tmp_path / "w.bin"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"legacy format.*fix: with a torch of your own"):
        open_torch_bin(path)


def test_a_torchscript_program_is_refused(tmp_path: Path):
    path = tmp_path / "program.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(InputError, match="not a TorchScript program"):
        open_torch_bin(path)


def test_a_zip_written_by_another_tool_compressed(tmp_path: Path):
    path = tmp_path / "w.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for part in parts():
            file.writestr(part.name.decode(), part.content)
    with pytest.raises(InputError, match="compressed"):
        open_torch_bin(path)
