"""A pass over 10,000 records of which 1% are broken, in ten ways."""

import functools
import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.train.data.records.sets import generation, picture, text, understanding, write_set
from tests.train.data.test_record_source import opened
from train.data.bad_samples import TooManyBadSamples
from train.data.packing import Generation, Sample
from train.data.prefetch import prefetch
from train.data.record_source import RecordSource
from train.data.records.record import Record

EACH = 10
SIZES = {"understanding": 4000, "text": 2000, "generation": 4000}
SAMPLES = {kind: n // 100 for kind, n in SIZES.items()}
LENGTH = 64


def bomb() -> bytes:
    """A PNG of a few bytes whose header says 60000 x 60000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def of_picture(change: Callable[[bytes], bytes]) -> Callable[[int], Record]:
    return lambda i: understanding(i, images=(change(picture(i)),))


def with_codes(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[int], Record]:
    return lambda i: replace(generation(i), codes=change(np.array([1, 2, 3, i % 64], np.int32)))


def floating(data: bytes) -> bytes:
    del data
    buffer = io.BytesIO()
    Image.new("F", (4, 4), 0.5).save(buffer, "TIFF")
    return buffer.getvalue()


# How, what is counted, and whether it is known before the first step.
WAYS: list[tuple[Callable[[int], Record | tuple[str, bytes]], str, bool]] = [
    (of_picture(lambda data: data[:45]), "picture cannot be decoded", False),  # cut off
    (of_picture(lambda data: b"<html>404</html>"), "picture cannot be decoded", False),
    (of_picture(lambda data: bomb()), "picture cannot be decoded", False),
    (of_picture(floating), "picture cannot be decoded", False),
    (lambda i: ("text", b"\xc1 no record"), "record cannot be read", True),
    (lambda i: replace(text(i), turns=text(i).turns[:1]), "the turns make no prompt", True),
    (lambda i: text(i, rounds=9), "longer than a row", True),
    (with_codes(lambda codes: codes[:2]), "wrong number of image tokens", True),
    (with_codes(lambda codes: codes + 100), "image tokens out of range", True),
    (lambda i: generation(i, caption=" "), "the caption makes no prompt", True),
]


class Spoilt(NamedTuple):
    path: str
    broken: frozenset[tuple[str, int]]
    reasons: dict[str, int]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Spoilt:
    """The data set; broken records stand anywhere."""
    rng = np.random.default_rng(0)
    kinds: dict[str, list[Record | tuple[str, bytes]]] = {
        "understanding": [understanding(i) for i in range(SIZES["understanding"])],
        "text": [text(i) for i in range(SIZES["text"])],
        "generation": [generation(i) for i in range(SIZES["generation"])],
    }
    free = {kind: rng.permutation(len(records)).tolist() for kind, records in kinds.items()}
    broken, reasons = set(), {}
    for make, reason, _ in WAYS:
        for _ in range(EACH):
            item = make(0)
            kind = item.kind if isinstance(item, Record) else item[0]
            number = free[kind].pop()
            kinds[kind][number] = make(number)
            broken.add((kind, number))
            reasons[reason] = reasons.get(reason, 0) + 1
    path = write_set(tmp_path_factory.mktemp("spoilt") / "set", chain(*kinds.values()))
    return Spoilt(str(path), frozenset(broken), reasons)


def opened_spoilt(spoilt: Spoilt, log: Path | None, **options) -> RecordSource:
    options = {"samples": SAMPLES, "length": LENGTH, "caption_drop": 0.1} | options
    return opened(spoilt.path, bad_log=log, **options)


def arrays(sample: Sample) -> list[np.ndarray]:
    if isinstance(sample, Generation):
        return [sample.prompt, sample.codes]
    pictures = [] if sample.pictures is None else [sample.pictures]
    return [sample.tokens, sample.answer, *pictures]


def read(step: int, source: RecordSource) -> list[tuple[str, str]]:
    """Ids and digests of the samples of a step."""
    found = []
    for entry in source.plan(step):
        sample = source.load(step, entry)
        assert sample is not None and sample.length <= entry.tokens
        content = hashlib.sha256(b"".join(array.tobytes() for array in arrays(sample)))
        found.append((sample.id, content.hexdigest()))
    return found


def steps(source: RecordSource, start: int, stop: int, processes: int = 0) -> Iterator[list]:
    return prefetch(
        functools.partial(read, source=source), start, stop, source=source, processes=processes
    )


# The longest stratum has 100 usable records.
PASS = 100


def test_broken_records_are_counted_exactly_in_a_pass_that_can_be_repeated_and_resumed(
    spoilt: Spoilt, tmp_path: Path
):
    logs = [tmp_path / f"{i}.jsonl" for i in range(3)]
    source = opened_spoilt(spoilt, logs[0])
    early = sum(known for *_, known in WAYS) * EACH
    assert source.bad.count == early
    whole = list(steps(source, 0, PASS))
    assert source.bad.count == len(WAYS) * EACH == 100
    assert source.bad.reasons == dict(sorted(spoilt.reasons.items(), key=lambda i: (-i[1], i[0])))
    lines = [json.loads(line) for line in logs[0].read_text().splitlines()]
    assert {(line["kind"], line["number"]) for line in lines} == spoilt.broken
    assert len(lines) == 100
    # Every sound record was read.
    names = {"u": "understanding", "t": "text", "g": "generation"}
    seen = {(names[id[0]], int(id[1:])) for step in whole for id, _ in step}
    assert seen == {(k, i) for k, n in SIZES.items() for i in range(n)} - spoilt.broken
    # A second pass finds the same ones: nothing new to count.
    for _ in steps(source, PASS, PASS + 3):
        pass
    assert source.bad.count == 100

    repeated = opened_spoilt(spoilt, logs[1])
    assert list(steps(repeated, 0, PASS, processes=2)) == whole
    assert logs[1].read_bytes() == logs[0].read_bytes()

    stopped = opened_spoilt(spoilt, logs[2])
    assert list(steps(stopped, 0, 60)) == whole[:60]
    resumed = opened_spoilt(spoilt, logs[2])
    assert list(steps(resumed, 55, PASS)) == whole[55:]
    assert resumed.bad.reasons == source.bad.reasons
    assert logs[2].read_bytes() == logs[0].read_bytes()


def test_broken_records_beyond_the_limit_end_the_run_with_one_line(spoilt: Spoilt):
    source = opened_spoilt(spoilt, None, max_bad_samples=0.008)
    taken = 0
    with pytest.raises(TooManyBadSamples) as error:
        for _ in steps(source, 0, PASS):
            taken += 1
    assert 20 < taken < PASS and 80 < source.bad.count < 90
    message = str(error.value)
    assert "\n" not in message
    assert f"{source.bad.count} samples are broken, --max-bad-samples allows 0.800%" in message
    with pytest.raises(TooManyBadSamples, match="60 samples are broken"):
        opened_spoilt(spoilt, None, max_bad_samples=59)
