"""Batches come in the order of their steps, whoever makes them, and broken samples with them."""

import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.train.data.records.sets import text, understanding, write_set
from tests.train.data.test_record_source import opened
from train.data.bad_samples import TooManyBadSamples
from train.data.batches import PackedBatches
from train.data.prefetch import WorkerFailed, prefetch
from train.data.record_source import RecordSource


def square(step: int) -> np.ndarray:
    return np.full(40_000, step * step)


@pytest.mark.parametrize("workers", [{}, {"threads": 4}, {"processes": 2}], ids=str)
def test_batches_come_in_order_from_any_step(workers):
    got = list(prefetch(square, 3, 9, **workers))
    assert [int(batch[0]) for batch in got] == [9, 16, 25, 36, 49, 64]
    assert all((batch == batch[0]).all() for batch in got)


def test_nothing_is_left_after_the_last_step():
    assert list(prefetch(square, 8, 8)) == []


def test_an_error_of_the_reader_is_raised_in_its_place():
    def read(step: int) -> int:
        if step == 2:
            raise KeyError("lost")
        return step

    batches = prefetch(read, 0, 5)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(KeyError, match="lost"):
        next(batches)


def test_a_batch_that_never_comes_ends_the_wait():
    release = threading.Event()

    def read(step: int) -> int:
        if step == 1:
            release.wait()
        return step

    batches = prefetch(read, 0, 5, timeout=0.3)
    assert next(batches) == 0
    with pytest.raises(
        WorkerFailed, match=r"no batch for step 1 within 0.3 s: a loader worker hangs"
    ):
        next(batches)
    release.set()


def test_few_steps_are_made_ahead_and_none_after_the_reader_has_left():
    made: list[int] = []

    def read(step: int) -> int:
        made.append(step)
        return step

    before = set(threading.enumerate())
    batches = prefetch(read, 0, 1000)
    assert next(batches) == 0
    time.sleep(0.3)
    assert len(made) <= 3
    batches.close()  # type: ignore[attr-defined]
    ahead = len(made)
    time.sleep(0.5)
    assert len(made) <= ahead + 1
    assert not [t for t in set(threading.enumerate()) - before if t.name == "prefetch"]


@pytest.fixture
def spoilt(tmp_path: Path) -> str:
    good = [understanding(i) for i in range(20)]
    broken = [understanding(100 + i, images=(b"no picture",)) for i in range(4)]
    return str(write_set(tmp_path / "set", [*good, *broken, *map(text, range(8))]))


def stream(source: RecordSource, start: int, stop: int, processes: int = 0) -> Iterator[dict]:
    batches = PackedBatches(
        source, kinds=("understanding", "text"), length=200, image_size=16, image_tokens=4
    )
    read = functools.partial(batches.groups_of, numbers=[0])
    return prefetch(read, start, stop, source=source, processes=processes)


def run(source: RecordSource, start: int, stop: int, processes: int = 0) -> list[dict]:
    return [batch[0] for batch in stream(source, start, stop, processes)]


MIX = {"understanding": 3, "text": 1}


def same(ours: list[dict], others: list[dict]) -> bool:
    keys = ("tokens", "pixels", "segment_ids")
    return all(
        np.array_equal(one[key], other[key])
        for one, other in zip(ours, others, strict=True)
        for key in keys
    )


def test_steps_with_broken_samples_are_the_same_again_in_processes_and_when_resumed(
    spoilt: str, tmp_path: Path
):
    logs = [tmp_path / f"{i}.jsonl" for i in range(3)]
    whole = opened(spoilt, samples=MIX, bad_log=logs[0])
    batches = run(whole, 0, 16)
    assert whole.bad.count == 4
    elsewhere = opened(spoilt, samples=MIX, bad_log=logs[1])
    assert same(run(elsewhere, 0, 16, processes=2), batches)
    assert logs[1].read_bytes() == logs[0].read_bytes()
    # Stopped in step 5, with later steps made ahead and a line half written; the state was that
    # of step 3.
    stopped = opened(spoilt, samples=MIX, bad_log=logs[2])
    run(stopped, 0, 5)
    with logs[2].open("a") as file:
        file.write('{"step": 5, "sour')
    resumed = opened(spoilt, samples=MIX, bad_log=logs[2])
    assert same(run(resumed, 3, 16), batches[3:])
    assert resumed.bad.count == 4 and resumed.bad.reasons == whole.bad.reasons
    assert logs[2].read_bytes() == logs[0].read_bytes()


def test_the_limit_ends_a_run_at_the_same_step_whenever_it_is_reached(spoilt: str, tmp_path: Path):
    log = tmp_path / "bad.jsonl"

    def steps_until(start: int, limit: float) -> int:
        source, taken = opened(spoilt, samples=MIX, max_bad_samples=limit, bad_log=log), start
        with pytest.raises(TooManyBadSamples, match="samples are broken") as error:
            for _ in stream(source, start, 50):
                taken += 1
        assert str(log) in str(error.value) and "picture cannot be decoded" in str(error.value)
        return taken

    last = steps_until(0, 2)
    assert last < 8
    log.unlink()
    stopped = opened(spoilt, samples=MIX, max_bad_samples=2, bad_log=log)
    run(stopped, 0, max(last - 1, 1))
    assert steps_until(max(last - 2, 0), 2) == last
    # 3 of the 32 samples are more than 7%.
    log.unlink()
    assert steps_until(0, 0.07) == last
    log.unlink()
    assert steps_until(0, 0) <= last
