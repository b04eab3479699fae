"""Archives that are not what torch.save writes, or that say two things at once: all refused."""

import dataclasses
import zipfile
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
