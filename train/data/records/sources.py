"""Where records come from: JSONL files, WebDataset tar shards and Parquet files.

An input is cut into units that can be read on their own, in parallel and again after a stop:
a range of lines, a tar file, a row group. Paths may be local or `gs://`, `s3://`
(`train.data.records.remote`); pictures named in JSONL are found beside the file.
"""

from __future__ import annotations

import glob
import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, cast

from janus_jax.errors import InputError
from train.data.records import remote
from train.data.records.record import Record
from train.data.records.schema import BrokenRecord, Captions, parse

Format = Literal["jsonl", "tar", "parquet"]

MAX_IMAGE_BYTES = 2**27
"""A picture's file may be up to 128 MB; what is larger is broken, not read into memory."""

_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".tar": "tar",
    ".parquet": "parquet",
}
_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
_LINES = 4096


@dataclass(frozen=True)
class Unit:
    """A part of an input that is read on its own.

    Attributes:
      path: the file.
      format: how to read it.
      start: first byte (JSONL) or row group (Parquet).
      stop: one past the last.
      line: number of the first line (JSONL), from 1.
    """

    path: str
    format: Format
    start: int = 0
    stop: int = 0
    line: int = 1


def is_file_input(name: str) -> bool:
    """Whether a name is that of a file to pack, by its suffix."""
    return PurePosixPath(name).suffix in _SUFFIXES


def find_units(inputs: tuple[str, ...]) -> list[Unit]:
    """The units of all inputs, in a fixed order.

    Args:
      inputs: files, patterns with `*`, or directories (whose files are taken by suffix).

    Raises:
      InputError: an input that does not exist, cannot be read or has an unknown suffix.
    """
    units: list[Unit] = []
    for name in inputs:
        try:
            units += [unit for path in _files(name) for unit in _units(path)]
        except OSError as error:
            what = f"{(error.filename or name)!r} cannot be read ({error.strerror or error})"
            raise InputError(what, fix="check the path and who may read it") from error
    return units


def _files(name: str) -> list[str]:
    far = remote.is_address(name)
    if any(letter in name for letter in "*?["):
        found = remote.match(name) if far else sorted(glob.glob(name))
        if not found:
            raise InputError(f"no file matches {name!r}", fix="check the pattern")
        return found
    path = Path(name)
    kind = remote.kind_of(name) if far else "directory" if path.is_dir() else path.exists()
    if kind == "directory":
        listed = remote.list_directory(name) if far else sorted(map(str, path.iterdir()))
        found = [file for file in listed if is_file_input(file)]
        if not found:
            raise InputError(f"{name!r} holds no {', '.join(_SUFFIXES)} file")
        return found
    if not kind:
        raise InputError(f"{name!r} does not exist", fix="check the path")
    return [name]


def _open(path: str) -> BinaryIO:
    return cast(BinaryIO, remote.open_object(path)) if remote.is_address(path) else open(path, "rb")


def _units(path: str) -> list[Unit]:
    kind = _SUFFIXES.get(PurePosixPath(path).suffix)
    if kind is None:
        raise InputError(f"{path!r} has an unknown suffix", ", ".join(_SUFFIXES))
    if kind == "tar":
        return [Unit(path, "tar")]
    if kind == "parquet":
        with _open(path) as file:
            groups = _parquet(file, path).num_row_groups
        return [Unit(path, "parquet", group, group + 1) for group in range(groups)]
    units, start, line, size = [], 0, 1, 0
    with _open(path) as file:
        for number, text in enumerate(file, start=1):
            size += len(text)
            if number % _LINES == 0:
                units.append(Unit(path, "jsonl", start, size, line))
                start, line = size, number + 1
    if size > start:
        units.append(Unit(path, "jsonl", start, size, line))
    return units


def read_unit(unit: Unit, captions: Captions) -> Iterator[Record | BrokenRecord]:
    """The records of a unit, the broken ones in their places.

    Args:
      unit: what to read.
      captions: see `parse`.

    Raises:
      InputError: the file as a whole cannot be read.
    """
    name = PurePosixPath(unit.path).name
    for default_id, fields, load in _READERS[unit.format](unit, name):
        try:
            if isinstance(fields, BrokenRecord):
                raise fields
            yield from parse(fields, default_id, load, captions=captions)
        except BrokenRecord as broken:
            yield broken


def _jsonl(unit: Unit, name: str) -> Iterator[tuple[str, Any, Any]]:
    def load(value: Any) -> bytes:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is not a path")
        content = _picture(unit.path, value)
        if len(content) > MAX_IMAGE_BYTES:
            raise ValueError(f"larger than {MAX_IMAGE_BYTES >> 20} MB")
        return content

    with _open(unit.path) as file:
        file.seek(unit.start)
        for offset, line in enumerate(file.read(unit.stop - unit.start).splitlines()):
            if not line.strip():
                continue
            id = f"{name}:{unit.line + offset}"
            try:
                yield id, json.loads(line), load
            except (ValueError, RecursionError) as error:
                yield id, BrokenRecord(id, "not JSON", str(error)), load


def _picture(file: str, name: str) -> bytes:
    """The file that a line of `file` names; no more of it than shows that it is too large."""
    if remote.is_address(name):
        if not name.startswith(tuple(f"{scheme}://" for scheme in remote.SCHEMES)):
            raise ValueError(f"{name} is neither a path nor s3:// or gs://")
        return remote.read_object(name, MAX_IMAGE_BYTES + 1)
    if remote.is_address(file):
        if name.startswith("/"):
            # A stranger's file is not to decide what is read of this machine's disk.
            raise ValueError(f"{name} is of this machine, {file} is not")
        return remote.read_object(remote.beside(file, name), MAX_IMAGE_BYTES + 1)
    with (Path(file).parent / name).open("rb") as picture:
        return picture.read(MAX_IMAGE_BYTES + 1)


def _tar(unit: Unit, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Samples of a WebDataset shard: neighbours that share a name up to the first dot."""

    def sample(stem: str, parts: dict[str, bytes]) -> tuple[str, Any, Any]:
        id = f"{name}:{stem}"
        fields: Any = {}
        if "json" in parts:
            try:
                fields = json.loads(parts["json"])
            except (ValueError, RecursionError) as error:
                return id, BrokenRecord(id, "not JSON", str(error)), bytes
        if isinstance(fields, dict):
            fields = {k: v for k, v in fields.items() if k not in ("image", "images")}
            if "txt" in parts and not fields.get("caption"):
                fields["caption"] = parts["txt"].decode("utf-8", "replace")
            pictures = [parts[p] for p in _PICTURES if p in parts]
            fields["images"] = pictures
        return id, fields, bytes

    stem, parts = "", {}
    try:
        with (
            _open(unit.path) as file,
            tarfile.open(fileobj=file, mode="r|") as tar,
        ):
            for member in tar:
                if not member.isfile():
                    continue
                folder, base = posixpath.split(member.name)
                first, _, extension = base.partition(".")
                key = posixpath.join(folder, first)
                if key != stem and parts:
                    yield sample(stem, parts)
                    parts = {}
                stem = key
                if member.size <= MAX_IMAGE_BYTES:
                    content = tar.extractfile(member)
                    parts[extension.lower()] = content.read() if content else b""
    except (tarfile.TarError, EOFError) as error:
        # What was read so far is good; the sample that the damage cut short is not.
        id = f"{name}:{stem}"
        yield id, BrokenRecord(id, "tar file is damaged from here on", str(error)), bytes
        return
    if parts:
        yield sample(stem, parts)


def _parquet(file: Any, name: str) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        fix = 'pip install -e ".[data]" in the checkout'
        raise InputError(f"{name!r} needs pyarrow, which is not installed", fix=fix) from error
    import pyarrow as pa

    try:
        return pq.ParquetFile(file)
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name!r} is not a Parquet file ({error})") from error


def _rows(unit: Unit, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Rows of a row group; pictures as bytes, or as the {bytes, path} that `datasets` writes."""

    def load(value: Any) -> bytes:
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise TypeError(f"{type(value).__name__} instead of the bytes of a file")
        return value

    with _open(unit.path) as file:
        parquet = _parquet(file, unit.path)
        row = sum(parquet.metadata.row_group(g).num_rows for g in range(unit.start))
        for batch in parquet.iter_batches(64, row_groups=range(unit.start, unit.stop)):
            for fields in batch.to_pylist():
                yield f"{name}:{row}", fields, load
                row += 1


_READERS = {"jsonl": _jsonl, "tar": _tar, "parquet": _rows}
