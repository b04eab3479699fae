"""A packed data set on disk.

    generation/00012.array_record     shards, a folder for each kind
    units/00012.json                  what unit 12 of the input gave; its presence means done
    plan.json                         what it is made from; its presence means begun
    manifest.json                     all shards with their counts; its presence means complete

An entry of a shard is `Record.to_bytes`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from janus_jax.errors import InputError
from janus_jax.manifest import read_json, write_json
from train.data.records.record import KINDS, Kind, Record

FORMAT = "janus-jax-records"
VERSION = 1
PLAN_FILE = "plan.json"

# One entry a group: any record can be read alone, which a global shuffle needs.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class ShardWriter:
    """Writes a shard under a name of its own; it takes its place in `publish`."""

    def __init__(self, path: Path):
        self.path = path
        self.records = 0
        self._digest = hashlib.sha256()
        self._working = path.with_name(f".{path.name}.writing")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = ArrayRecordWriter(str(self._working), _WRITER_OPTIONS)

    def write(self, record: Record) -> None:
        """Adds a record."""
        content = record.to_bytes()
        with self._writable():
            self._writer.write(content)
        self._digest.update(content)
        self.records += 1

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Says in one line that a disk is full, which is all that goes wrong with a good one."""
        try:
            yield
        except RuntimeError as error:
            raise InputError(
                f"shard {str(self.path)!r} cannot be written ({_first_clause(error)})",
                fix="make room or mend the disk, then run the same command again",
            ) from error

    def publish(self) -> dict[str, Any]:
        """Closes the shard and puts it in place; returns its entry of the manifest."""
        with self._writable():
            self._writer.close()
        self._working.replace(self.path)
        return {
            "file": f"{self.path.parent.name}/{self.path.name}",
            "records": self.records,
            "bytes": self.path.stat().st_size,
            # What tells a set that was packed again, with other records of the same sizes.
            "digest": self._digest.hexdigest()[:16],
        }


class Shards(Sequence[Record]):
    """The records of one kind, read by number.

    Args:
      directory: a packed data set.
      kind: which records.

    Raises:
      InputError: a shard is missing, damaged or has another number of records than the manifest
        says.
    """

    def __init__(self, directory: Path, kind: Kind):
        entries = read_manifest(directory)["kinds"].get(kind, {"shards": []})["shards"]
        self._name = str(directory / kind)
        paths = [directory / entry["file"] for entry in entries]
        if missing := [p for p in paths if not p.is_file()]:
            raise InputError(f"shard {str(missing[0])!r} is missing", fix="pack the data again")
        self._source: Any = _open(paths) if paths else ()
        wanted = sum(entry["records"] for entry in entries)
        if len(self._source) != wanted:
            raise InputError(
                f"{self._name!r} holds {len(self._source)} records, its manifest says {wanted}",
                fix="pack the data again",
            )

    def __len__(self) -> int:
        return len(self._source)

    def name_of(self, index: int) -> str:
        """What messages call a record that cannot be read for its id."""
        return f"{self._name}[{index}]"

    def reopen(self) -> None:
        """Lets go of all files: the next read opens its own anew, in whatever state they are."""
        self._source = copy.copy(self._source)  # its copies, like those in workers, have none open

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} has {len(self)} records, not a number {index}")
        name = self.name_of(index)
        try:
            content = self._source[index]
        except RuntimeError as error:
            # Riegeli has no type of its own for a wrong checksum.
            if "orrupted" not in str(error):
                raise
            raise InputError(
                f"{name} is damaged ({_first_clause(error)})", fix="pack the data again"
            ) from error
        return Record.from_bytes(content, name)


def _first_clause(error: RuntimeError) -> str:
    """What went wrong; Riegeli tells at length where, too."""
    return str(error).partition(";")[0]


def _open(paths: Sequence[Path]) -> ArrayRecordDataSource:
    try:
        return ArrayRecordDataSource([str(path) for path in paths])
    except RuntimeError as error:
        if len(paths) > 1:  # the message names no file: find the one
            for path in paths:
                _open([path])
        raise InputError(
            f"shard {str(paths[0])!r} cannot be opened ({error})", fix="pack the data again"
        ) from error


@dataclass(frozen=True)
class RecordSet:
    """A packed data set.

    Attributes:
      directory: where it lies.
      kinds: the records of each kind that has any.
      manifest: content of manifest.json.
    """

    directory: Path
    kinds: dict[Kind, Shards]
    manifest: dict[str, Any]


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a packed data set.

    Raises:
      InputError: there is none, or of another version.
    """
    path = directory / "manifest.json"
    if not path.is_file():
        unfinished = (directory / PLAN_FILE).is_file()
        raise InputError(
            f"{str(directory)!r} is no packed data set",
            fix="run the same janus-jax data command again to finish it"
            if unfinished
            else "make it with janus-jax data pack",
        )
    manifest = read_json(path)
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise InputError(
            f"{str(path)!r} has format {manifest.get('format')!r} version "
            f"{manifest.get('version')!r}",
            f"{FORMAT} version {VERSION}",
        )
    return manifest


def begin(out: Path, plan: dict[str, Any], overwrite: bool) -> None:
    """Begins a data set, or goes on with one that was begun in the same way.

    Args:
      out: its directory.
      plan: everything that decides its content, as JSON types.
      overwrite: delete a data set that is there.

    Raises:
      InputError: a data set of another plan is there, or something else, or it cannot be written.
    """
    plan = json.loads(json.dumps(plan))  # tuples as lists, as the file gives them back
    marker = out / PLAN_FILE
    if overwrite and marker.is_file():
        shutil.rmtree(out)
    if marker.is_file():
        if read_json(marker) != plan:
            raise InputError(
                f"--out {str(out)!r} was begun with other inputs or settings",
                fix="use the same ones, another --out, or --overwrite",
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"--out {str(out)!r} holds something that is not a packed data set",
            "a new or empty directory",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not marker.is_file():
            # Before anything else: what a kill leaves here has to be known as ours.
            write_json(marker, plan)
        (out / "units").mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out {str(out)!r} cannot be written ({error.strerror})", fix="choose another"
        ) from error


def open_records(directory: str | Path) -> RecordSet:
    """Opens a packed data set.

    Raises:
      InputError: not one, or an incomplete one.
    """
    path = Path(directory)
    manifest = read_manifest(path)
    kinds: dict[Kind, Shards] = {
        kind: Shards(path, kind) for kind in KINDS if kind in manifest["kinds"]
    }
    return RecordSet(path, kinds, manifest)


def write_manifest(
    directory: Path, units: Sequence[dict[str, Any]], **facts: Any
) -> dict[str, Any]:
    """Sums the units up and completes the data set."""
    kinds: dict[str, dict[str, Any]] = {}
    for unit in units:
        for kind, shard in unit["shards"].items():
            entry = kinds.setdefault(kind, {"records": 0, "bytes": 0, "shards": []})
            entry["records"] += shard["records"]
            entry["bytes"] += shard["bytes"]
            entry["shards"].append(shard)
    reasons: dict[str, int] = {}
    for unit in units:
        for broken in unit["broken"]:
            reasons[broken["reason"]] = reasons.get(broken["reason"], 0) + 1
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **facts,
        "kinds": {kind: kinds[kind] for kind in KINDS if kind in kinds},
        "broken": {"records": sum(reasons.values()), "reasons": dict(sorted(reasons.items()))},
    }
    write_json(directory / "manifest.json", manifest)
    return manifest
