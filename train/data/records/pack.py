"""`janus-jax data pack`: users' files into ArrayRecord shards, in parallel, resumable.

Every unit of the input is written by one process: first its shards, then a small file that says
so. A run that was stopped, however, skips the units whose file is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from janus_jax.errors import InputError
from janus_jax.manifest import read_json, write_json
from janus_jax.processing.image import load_image
from train.data.records.record import Record
from train.data.records.schema import BrokenRecord, Captions
from train.data.records.shards import ShardWriter, begin, write_manifest
from train.data.records.sources import Unit, find_units, read_unit
from train.data.workers import worker_pool

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PackSettings:
    """What decides the result.

    Attributes:
      inputs: files, patterns or directories.
      captions: what a picture with a caption is for.
    """

    inputs: tuple[str, ...]
    captions: Captions = "generation"


def pack(
    settings: PackSettings,
    out: Path,
    *,
    workers: int,
    max_broken: float = 0.01,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Packs a data set; the same call goes on after a stop.

    Args:
      settings: what to pack.
      out: directory of the data set.
      workers: processes.
      max_broken: largest share of broken records that is accepted, of all records. A higher one
        makes no other data set: the call goes on.
      overwrite: delete a data set that is there.
      progress: called with (units done, units in all).

    Returns:
      The manifest.

    Raises:
      InputError: an input that cannot be used, other settings than the data set there was begun
        with, too many broken records (named), or a full disk.
    """
    units = find_units(settings.inputs)
    begin(out, {"settings": asdict(settings), "units": [asdict(u) for u in units]}, overwrite)
    todo = [i for i in range(len(units)) if not _unit_file(out, i).is_file()]
    done = len(units) - len(todo)
    if progress:
        progress(done, len(units))
    for _ in _run(units, todo, out, settings.captions, workers):
        done += 1
        if progress:
            progress(done, len(units))
    results = [read_json(_unit_file(out, i)) for i in range(len(units))]
    _check_broken(results, max_broken, out / "units" / "*.json")
    return write_manifest(out, results, source=list(settings.inputs), captions=settings.captions)


def _run(
    units: list[Unit], todo: list[int], out: Path, captions: Captions, workers: int
) -> Iterator[int]:
    if min(workers, len(todo)) <= 1:
        for i in todo:
            yield _pack_unit(units[i], i, out, captions)
        return
    with worker_pool(min(workers, len(todo))) as pool:
        futures = [pool.submit(_pack_unit, units[i], i, out, captions) for i in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _unit_file(out: Path, index: int) -> Path:
    return out / "units" / f"{index:05d}.json"


def _pack_unit(unit: Unit, index: int, out: Path, captions: Captions) -> int:
    writers: dict[str, ShardWriter] = {}
    broken: list[dict[str, str]] = []
    try:
        for item in read_unit(unit, captions):
            if isinstance(item, Record):
                item = _bad_picture(item) or item
            if isinstance(item, BrokenRecord):
                broken.append(_listed(item))
                continue
            if item.kind not in writers:
                writers[item.kind] = ShardWriter(out / item.kind / f"{index:05d}.array_record")
            writers[item.kind].write(item)
        shards = {kind: writer.publish() for kind, writer in writers.items()}
        write_json(_unit_file(out, index), {"shards": shards, "broken": broken})
    except OSError as error:
        if error.filename == unit.path:
            raise InputError(
                f"{unit.path!r} cannot be read any more ({error.strerror})",
                fix="check who may read it, then run the same command again",
            ) from error
        raise InputError(
            f"{unit.path!r} cannot be packed into {str(out)!r} ({error.strerror or error})",
            fix="make room or check the paths, then run the same command again",
        ) from error
    return index


def _listed(broken: BrokenRecord) -> dict[str, str]:
    return {"id": broken.id, "reason": broken.reason, "detail": broken.detail[:200]}


def _bad_picture(record: Record) -> BrokenRecord | None:
    """Decodes every picture once here, so that training meets no broken one."""
    for data in record.images:
        try:
            load_image(data)
        except InputError as error:
            return BrokenRecord(record.id, "picture cannot be decoded", error.what)
    return None


def _check_broken(units: list[dict[str, Any]], limit: float, listed: Path) -> None:
    broken = [entry for unit in units for entry in unit["broken"]]
    good = sum(shard["records"] for unit in units for shard in unit["shards"].values())
    if not good:
        raise InputError(
            "the inputs hold no usable record"
            + (f"; the first: {broken[0]['id']}: {broken[0]['reason']}" if broken else "")
        )
    share = len(broken) / (good + len(broken))
    if share > limit:
        first = "; ".join(f"{b['id']}: {b['reason']}" for b in broken[:3])
        raise InputError(
            f"{len(broken)} of {good + len(broken)} records are broken ({share:.1%}): {first}",
            f"at most {limit:.1%} (--max-broken)",
            f"repair them and add --overwrite, or raise --max-broken; all are listed in {listed}",
        )
