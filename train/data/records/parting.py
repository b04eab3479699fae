"""One packed data set parted in two: what is trained on, and what is kept out and measured.

Sides are decided by a hash of the picture, or of the id where there is none: a caption for drawing,
the same caption for understanding and every conversation about a picture are on the same side, in
any order of the files and in every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from janus_jax.manifest import write_json
from train.data.records.record import KINDS, Kind, Record
from train.data.records.shards import Shards, ShardWriter, begin, write_manifest


def key_of(record: Record) -> str:
    """What decides the side: equal for all records of a picture."""
    content = record.images[0] if record.images else record.id.encode("utf-8", "surrogatepass")
    return hashlib.sha256(content).hexdigest()


def part(
    records: Mapping[Kind, Shards],
    training: Path,
    heldout: Path,
    *,
    share: float,
    source: tuple[str, ...],
) -> None:
    """Writes both data sets, without the files of pictures that have image tokens.

    The one to train on is completed last. What an interrupted call has left is made again.

    Args:
      records: of each kind; pictures to draw still with their files.
      training: directory of the data set to train on.
      heldout: directory of the other one, which is not made where nothing falls to it.
      share: of the pictures and texts, how many are held out: to the nearest number, but one where
        there are at least two.
      source: what the data sets are made of, for their manifests.
    """
    keys = {kind: [key_of(record) for record in found] for kind, found in records.items()}
    # In the order of their hashes, so that an added picture changes the side of at most one.
    ordered = sorted({key for found in keys.values() for key in found})
    count = round(share * len(ordered))
    if share and len(ordered) > 1:
        count = min(max(count, 1), len(ordered) - 1)
    kept_out = set(ordered[:count])
    for out, wanted in ((heldout, True), (training, False)):
        begin(out, {"source": source, "share": share, "heldout": wanted}, overwrite=True)
        shards = {}
        for kind in KINDS:
            some = (i for i, key in enumerate(keys.get(kind, ())) if (key in kept_out) is wanted)
            if written := _write(records.get(kind), some, out / kind / "00000.array_record"):
                shards[kind] = written
        unit = {"shards": shards, "broken": []}
        write_json(out / "units" / "00000.json", unit)
        write_manifest(out, [unit], source=list(source))


def _write(records: Shards | None, numbers: Iterator[int], path: Path) -> dict | None:
    first = next(numbers, None)
    if records is None or first is None:
        return None
    writer = ShardWriter(path)
    for number in (first, *numbers):
        record = records[number]
        if record.codes is not None:
            record = Record(record.id, record.kind, caption=record.caption, codes=record.codes)
        writer.write(record)
    return writer.publish()
