"""Packed data sets as the samples of a run: what `--data DIR[:WEIGHT] ...` reads.

A sample's number is its place among all samples of its kind: those of the first data set that holds
the kind, then those of the next. What is kept of them in memory are their lengths, 16 bytes each.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from janus_jax.errors import InputError
from janus_jax.processing.settings import ProcessorConfig
from janus_jax.processing.tokenizer import Tokenizer
from train.data.bad_samples import BadSample, BadSamples
from train.data.filling import samples_that_fill
from train.data.mixture import parse_data
from train.data.packing import KINDS, Kind, Sample
from train.data.records.lengths import Lengths, Progress, load_lengths, read_record
from train.data.records.prepare import Preparation
from train.data.records.record import Record
from train.data.records.schema import BrokenRecord
from train.data.records.shards import RecordSet, Shards, open_records
from train.data.schedule import LengthTable, Schedule
from train.data.source import Entry

# Stand-ins that are tried for a broken sample before its slots are left empty.
_TRIES = 8


@dataclass(frozen=True, eq=False)
class _Part:
    """The records of one kind in one data set; `first` is the number of the first of them."""

    directory: str
    records: Shards
    first: int


class RecordSource:
    """Samples of packed data sets; a `train.data.source.Source`. Made by `open_source`.

    `plan` and what `load` returns are functions of (seed, step) and the data alone. `load` may be
    called in any thread, and the source may be sent to worker processes.

    Attributes:
      bad: the broken samples met so far.
    """

    def __init__(
        self,
        parts: Mapping[Kind, Sequence[_Part]],
        tables: Mapping[Kind, tuple[LengthTable, np.ndarray]],
        schedule: Schedule,
        preparation: Preparation,
        *,
        seed: int,
        caption_drop: float,
        bad: BadSamples,
    ):
        self._parts, self._schedule, self._preparation = dict(parts), schedule, preparation
        self._tables = dict(tables)
        self._seed, self._caption_drop = seed, caption_drop
        self._found: dict[int, list[BadSample]] = {}
        self.bad = bad

    def plan(self, step: int) -> list[Entry]:
        """The samples of a step, in the order in which they are packed."""
        return [self._entry(kind, number) for kind, number in self._schedule.step(step)]

    def load(self, step: int, entry: Entry) -> Sample | None:
        """Reads and prepares a sample of a step.

        One that is broken is written down (`found`) and replaced by the next of its stratum that
        is not larger; None where several of those are broken too, or there is none.

        Raises:
          RunFailed: storage failed, which says nothing of the sample (`read_record`).
        """
        for number in itertools.chain([entry.number], self._stand_ins(step, entry)):
            try:
                return self._load(step, entry, number)
            except BrokenRecord as error:
                part, local = self._place(entry.kind, number)
                bad = BadSample(
                    step, part.directory, entry.kind, local, error.id, error.reason, error.detail
                )
                self._found.setdefault(step, []).append(bad)
        return None

    def entries(self) -> list[Entry]:
        """All samples that can be used, kind after kind."""
        return [
            self._entry(kind, int(number))
            for kind, (table, _) in self._tables.items()
            for number in np.flatnonzero(table.tokens)
        ]

    def read(self, entry: Entry) -> Sample | None:
        """One sample as it is, with its caption; None where it is broken."""
        try:
            return self._load(-1, entry, entry.number)
        except BrokenRecord:
            return None

    def found(self, step: int) -> list[BadSample]:
        """The broken samples that `load` has met in a step since this was asked last."""
        return self._found.pop(step, [])

    def name(self, entry: Entry) -> str:
        """Where a sample stands: "data/web/generation[17]"."""
        part, local = self._place(entry.kind, entry.number)
        return part.records.name_of(local)

    def sample_id(self, entry: Entry) -> str:
        """The id of its record; its name where the record cannot be read."""
        part, local = self._place(entry.kind, entry.number)
        try:
            return read_record(part.records, local, entry.kind).id
        except BrokenRecord:
            return self.name(entry)

    def _entry(self, kind: Kind, number: int) -> Entry:
        table, pictures = self._tables[kind]
        targets = 0 if table.text_targets is None else int(table.text_targets[number])
        return Entry(kind, number, int(table.tokens[number]), int(pictures[number]), targets)

    def _stand_ins(self, step: int, entry: Entry) -> Iterator[int]:
        others = self._schedule.alternatives(step, entry.kind, entry.number)
        fitting = (number for number in others if _fits(self._entry(entry.kind, number), entry))
        return itertools.islice(fitting, _TRIES)

    def _load(self, step: int, entry: Entry, number: int) -> Sample:
        part, local = self._place(entry.kind, number)
        record = read_record(part.records, local, entry.kind)
        sample = self._preparation.sample(record, self._drops_caption(step, record))
        if sample.length > self._entry(entry.kind, number).tokens:
            raise BrokenRecord(record.id, "longer than when it was measured")
        return sample

    def _drops_caption(self, step: int, record: Record) -> bool:
        if record.kind != "generation" or not self._caption_drop:
            return False
        text = f"{self._seed} {step} {record.id}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") < self._caption_drop * 2**64

    def _place(self, kind: Kind, number: int) -> tuple[_Part, int]:
        part = next(part for part in reversed(self._parts[kind]) if part.first <= number)
        return part, number - part.first


def _fits(other: Entry, slots: Entry) -> bool:
    return (
        other.tokens <= slots.tokens
        and other.pictures <= slots.pictures
        and other.text_targets <= slots.text_targets
    )


def open_source(
    data: Sequence[str],
    *,
    samples: Mapping[Kind, int],
    length: int,
    seed: int,
    tokenizer: Tokenizer,
    processor: ProcessorConfig,
    image_tokens: int,
    codebook_size: int,
    rows: int = 0,
    caption_drop: float = 0.0,
    max_bad_samples: float | None = None,
    bad_log: Path | None = None,
    lengths_in: Path | None = None,
    fast_decode: bool = False,
    progress: Progress | None = None,
) -> RecordSource:
    """Opens the data sets of a run.

    The first run on a data set measures all of its records, which takes a while; the lengths are
    kept beside it (`train.data.records.lengths`). Where several processes train, all open the same
    data sets, in the same order.

    Args:
      data: packed data sets, `DIR` or `DIR:WEIGHT`; weights are relative within each kind.
      samples: samples of each kind in a step (`TrainConfig.samples`); kinds with 0 are not read.
      length: slots of a row; longer samples count as broken.
      seed: seed of the order and of dropped captions.
      tokenizer: the model's tokenizer.
      processor: the model's image settings, role names and system prompt.
      image_tokens: slots of a picture to understand, and codes of a picture to draw.
      codebook_size: codes are below this.
      rows: rows of a step that are to be filled; `samples` is then only the ratio of the kinds.
      caption_drop: share of the generation samples whose caption is replaced as guidance replaces
        it at inference; drawn anew from (seed, step, id) whenever a sample is read.
      max_bad_samples: broken samples that are accepted: a number, or below 1 a share of all
        samples of the data sets; None: any number.
      bad_log: JSONL file that lists them; a resumed run goes on with the file that is there.
      lengths_in: where lengths are kept of a data set whose own directory cannot be written.
      fast_decode: see `Preparation`.
      progress: called with (records measured, records in all) of each kind of each data set.

    Returns:
      The source.

    Raises:
      InputError: a data set that is none, is damaged, has no image tokens, or has too few samples.
      TooManyBadSamples: more samples are broken already than is accepted.
    """
    sets = parse_data(data)
    opened = [(open_records(s.directory), s.weight) for s in sets]
    preparation = Preparation(tokenizer, processor, image_tokens, codebook_size, fast_decode)
    parts: dict[Kind, list[_Part]] = {}
    tables: dict[Kind, tuple[LengthTable, np.ndarray]] = {}
    broken: list[BadSample] = []
    for kind in KINDS:
        holders = [(s, weight) for s, weight in opened if kind in s.kinds]
        if not samples.get(kind, 0) or not holders:
            continue
        lengths = [
            load_lengths(s, kind, preparation, fallback=lengths_in, progress=progress)
            for s, _ in holders
        ]
        for (s, _), found in zip(holders, lengths, strict=True):
            check_codes(s, found)
            broken += _broken(s, kind, found, length)
        parts[kind] = _parts(kind, [s for s, _ in holders])
        tables[kind] = _table(lengths, [weight for _, weight in holders], length)
    lengths_of: dict[Kind, LengthTable] = {k: t for k, (t, _) in tables.items()}
    try:
        if rows:
            samples = samples_that_fill(lengths_of, samples, rows=rows, length=length, seed=seed)
        schedule = Schedule(lengths_of, samples, length=length, seed=seed)
    except InputError as error:
        names = " ".join(data)
        raise InputError(f"--data {names}: {error.what}", error.allowed, error.fix) from error
    total = sum(len(part.records) for found in parts.values() for part in found)
    bad = BadSamples(max_bad_samples, total, bad_log)
    bad.settle(broken)
    return RecordSource(
        parts, tables, schedule, preparation, seed=seed, caption_drop=caption_drop, bad=bad
    )


def _parts(kind: Kind, sets: Sequence[RecordSet]) -> list[_Part]:
    sizes = [len(s.kinds[kind]) for s in sets]
    firsts = itertools.accumulate(sizes, initial=0)
    return [
        _Part(str(s.directory), s.kinds[kind], first)
        for s, first in zip(sets, firsts, strict=False)
    ]


def _table(
    lengths: Sequence[Lengths], weights: Sequence[Fraction], length: int
) -> tuple[LengthTable, np.ndarray]:
    """The lengths of one kind over all data sets, and its numbers of pictures."""
    tokens = np.concatenate([found.tokens for found in lengths])
    tokens[tokens > length] = 0
    sources = [(len(f.tokens), weight) for f, weight in zip(lengths, weights, strict=True)]
    targets = np.concatenate([found.text_targets for found in lengths])
    pictures = np.concatenate([found.pictures for found in lengths])
    return LengthTable(tokens, targets, tuple(sources)), pictures


def check_codes(data: RecordSet, lengths: Lengths) -> None:
    """Refuses pictures to draw that are no image tokens yet.

    Args:
      data: a data set.
      lengths: of its generation records, or of another kind.

    Raises:
      InputError: not one of them has image tokens.
    """
    missing = sum(broken["reason"] == "no image tokens" for broken in lengths.broken)
    if missing and missing == len(lengths.tokens):
        name = str(data.directory)
        raise InputError(
            f"--data {name!r}: its generation records have no image tokens",
            fix=f"run janus-jax data encode {name} --out {name}-codes --model MODEL "
            f"and train on {name}-codes",
        )


def _broken(data: RecordSet, kind: Kind, lengths: Lengths, length: int) -> Iterator[BadSample]:
    """What is known to be unusable before the first step."""
    directory = str(data.directory)
    for broken in lengths.broken:
        yield BadSample(-1, directory, kind, **broken)
    for number in np.flatnonzero(lengths.tokens > length).tolist():
        name = data.kinds[kind].name_of(number)
        detail = f"{lengths.tokens[number]} tokens, at most {length}"
        yield BadSample(-1, directory, kind, number, name, "longer than a row", detail)
