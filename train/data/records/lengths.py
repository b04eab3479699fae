"""Lengths of all records of a data set, measured once and kept beside it.

    lengths/generation-0123456789abcdef.npz

A file's name stands for everything that its content depends on: the records, and how they are
prepared (`Preparation.fingerprint`). So a wrong file is never read, and whoever measures writes the
same bytes. Of the processes of a run one measures, and the others wait for its file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.cpu_threads import cores
from janus_jax.errors import InputError, RunFailed
from janus_jax.hosts import by_first, team
from train.data.packing import Kind
from train.data.records.prepare import Preparation
from train.data.records.record import Record
from train.data.records.schema import BrokenRecord
from train.data.records.shards import RecordSet, Shards
from train.data.workers import worker_pool

Progress = Callable[[int, int], None]

_CHUNK = 4096
# Seconds before a record is asked for again.
_WAITS = (1, 5, 25)
# Each takes some hundred megabytes.
_MOST_WORKERS = 32
# Below this, starting processes takes longer than measuring.
_SMALL = 5 * _CHUNK


@dataclass(frozen=True, eq=False)
class Lengths:
    """Measures of the records of one kind of one data set, by number.

    Attributes:
      tokens: int32 [n], 0 where the record is broken.
      text_targets: int32 [n].
      pictures: int32 [n].
      broken: for each broken record `number`, `id`, `reason` and `detail`.
    """

    tokens: np.ndarray
    text_targets: np.ndarray
    pictures: np.ndarray
    broken: tuple[dict[str, Any], ...]


def read_record(records: Shards, number: int, kind: Kind) -> Record:
    """One record of a data set.

    Storage that fails is asked again for half a minute. What it holds may be sound, so it is no
    broken record: a run that passed it over would have trained on something else.

    Raises:
      BrokenRecord: it is damaged, or of another kind.
      RunFailed: storage goes on failing.
    """
    name = records.name_of(number)
    for wait in (*_WAITS, None):
        try:
            record = records[number]
            break
        except InputError as error:
            raise BrokenRecord(name, "record cannot be read", error.what) from error
        except MemoryError:
            raise
        except Exception as error:
            if wait is None:
                raise RunFailed(
                    f"{name} cannot be read, asked {len(_WAITS) + 1} times in {sum(_WAITS)} s "
                    f"({type(error).__name__}: {error}); look after the storage, the run can be "
                    "resumed"
                ) from error
            time.sleep(wait)
            records.reopen()
    if record.kind != kind:
        raise BrokenRecord(name, "record is of another kind", record.kind)
    return record


def load_lengths(
    data: RecordSet,
    kind: Kind,
    preparation: Preparation,
    *,
    fallback: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Lengths:
    """Lengths of one kind: from the file, or measured and written there.

    Args:
      data: the data set.
      kind: which records, of those that are there.
      preparation: how they become samples.
      fallback: where the file goes if the data set's directory cannot be written; without it every
        run measures again.
      workers: processes to measure with; by default one a core, at most 32.
      progress: called with (records done, records in all).
    """
    records = data.kinds[kind]
    content = json.dumps(data.manifest["kinds"][kind], sort_keys=True) + preparation.fingerprint()
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    folders = [data.directory / "lengths", *([fallback] if fallback else [])]
    paths = [folder / f"{kind}-{name}.npz" for folder in folders]
    workers = workers or min(cores(), _MOST_WORKERS)
    measure = functools.partial(_measured, paths, records, kind, preparation, workers, progress)
    found, others = _read(paths, len(records)), team()
    if others is not None and others.any(found is None):
        made = by_first(lambda: found or measure())
        found = found or made or _read(paths, len(records))
    # Of several hosts, the others measure too where each has files of its own.
    return found if found is not None else measure()


def _measured(
    paths: Sequence[Path],
    records: Shards,
    kind: Kind,
    preparation: Preparation,
    workers: int,
    progress: Progress | None,
) -> Lengths:
    """Measures, and writes the first of some files that can be written."""
    found = _measure(records, kind, preparation, workers, progress)
    refused: OSError | None = None
    for path in paths:
        try:
            _write(path, found)
            return found
        except OSError as error:
            refused = refused or error
    print(
        f"janus-jax: {str(paths[0].parent)!r} cannot be written ({refused and refused.strerror}): "
        "the next run measures the records again",
        file=sys.stderr,
    )
    return found


def _measure(
    records: Shards, kind: Kind, preparation: Preparation, workers: int, progress: Progress | None
) -> Lengths:
    size = len(records)
    chunks = [range(i, min(i + _CHUNK, size)) for i in range(0, size, _CHUNK)]
    table = np.zeros((3, size), np.int32)
    broken: list[dict[str, Any]] = []

    def take(chunk: range, result: tuple[np.ndarray, list[dict[str, Any]]]) -> None:
        table[:, chunk.start : chunk.stop] = result[0]
        broken.extend(result[1])
        if progress:
            progress(chunk.stop, size)

    if workers <= 1 or size < _SMALL:
        for chunk in chunks:
            take(chunk, _measure_chunk(records, kind, preparation, chunk))
    else:
        with worker_pool(min(workers, len(chunks)), _begin, records, kind, preparation) as pool:
            for chunk, result in zip(chunks, pool.map(_measure_in_worker, chunks), strict=True):
                take(chunk, result)
    return Lengths(table[0], table[1], table[2], tuple(broken))


def _measure_chunk(
    records: Shards, kind: Kind, preparation: Preparation, chunk: range
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    table = np.zeros((3, len(chunk)), np.int32)
    broken: list[dict[str, Any]] = []
    for i, number in enumerate(chunk):
        try:
            found = preparation.measure(read_record(records, number, kind))
            table[:, i] = found.tokens, found.text_targets, found.pictures
        except BrokenRecord as error:
            facts = {"id": error.id, "reason": error.reason, "detail": error.detail[:200]}
            broken.append({"number": number, **facts})
    return table, broken


# What a worker process measures with: sent once, not with every chunk.
_worker: list[tuple[Shards, Kind, Preparation]] = []


def _begin(records: Shards, kind: Kind, preparation: Preparation) -> None:
    _worker[:] = [(records, kind, preparation)]


def _measure_in_worker(chunk: range) -> tuple[np.ndarray, list[dict[str, Any]]]:
    records, kind, preparation = _worker[0]
    return _measure_chunk(records, kind, preparation, chunk)


def _read(paths: Sequence[Path], size: int) -> Lengths | None:
    """The first of some files that is there and whole."""
    for path in paths:
        try:
            with path.open("rb") as file, np.load(file) as content:
                table, broken = content["lengths"], json.loads(content["broken"].item())
        except Exception:  # not there, or damaged: measured again
            continue
        if table.shape == (3, size):
            return Lengths(table[0], table[1], table[2], tuple(broken))
    return None


def _write(path: Path, found: Lengths) -> None:
    """Under a name of its own first: other hosts may be writing the same."""
    path.parent.mkdir(exist_ok=True)
    table = np.stack([found.tokens, found.text_targets, found.pictures])
    descriptor, working = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, lengths=table, broken=np.array(json.dumps(found.broken)))
        os.chmod(working, 0o644)
        os.replace(working, path)
    except BaseException:
        os.unlink(working)
        raise
