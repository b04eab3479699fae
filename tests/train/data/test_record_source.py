"""Steps read from packed data sets: the mixture, the samples themselves, and stand-ins."""

import json
import pickle
import shutil
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from janus_jax.errors import InputError, RunFailed
from tests.train.data.records.sets import (
    CODEBOOK_SIZE,
    IMAGE_TOKENS,
    PROCESSOR,
    TOKENIZER,
    generation,
    picture,
    text,
    understanding,
    write_set,
)
from train.data.bad_samples import TooManyBadSamples
from train.data.packing import Conversation, Generation
from train.data.record_source import RecordSource, open_source
from train.data.records import lengths

SAMPLES = {"understanding": 2, "text": 1, "generation": 3}


def opened(*data: str, **options) -> RecordSource:
    options = {"samples": SAMPLES, "length": 200, "seed": 5} | options
    return open_source(
        data,
        tokenizer=TOKENIZER,
        processor=PROCESSOR,
        image_tokens=IMAGE_TOKENS,
        codebook_size=CODEBOOK_SIZE,
        **options,
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("sets")
    talk = [understanding(i, images=(picture(i),) * (1 + i % 2)) for i in range(20)]
    real = [*talk, *map(text, range(10)), *map(generation, range(30))]
    made = [generation(100 + i, "a blue heart " * (i % 3 + 1)) for i in range(12)]
    return str(write_set(folder / "real", real)), str(write_set(folder / "made", made))


def samples(source: RecordSource, steps):
    return [[source.load(step, entry) for entry in source.plan(step)] for step in steps]


def ids(loaded) -> list[list[str]]:
    return [[sample.id for sample in step] for step in loaded]


def test_a_step_holds_the_planned_samples(sets):
    source = opened(*sets)
    for step in range(8):
        entries = source.plan(step)
        assert Counter(entry.kind for entry in entries) == SAMPLES
        for entry in entries:
            sample = source.load(step, entry)
            assert sample is not None and sample.kind == entry.kind
            assert sample.length == entry.tokens and sample.id == source.sample_id(entry)
            if isinstance(sample, Conversation):
                assert entry.text_targets == sample.answer.sum()
                assert entry.pictures == len(sample.starts)
    assert source.bad.count == 0 and source.found(0) == []


def test_data_sets_share_a_kind_by_their_weights(sets):
    source = opened(sets[0], f"{sets[1]}:2")
    seen = Counter(
        (entry.kind, source.name(entry).split("/")[-2])
        for step in range(50)
        for entry in source.plan(step)
    )
    # 3 generation samples a step at 1:2; the other kinds are in one set only.
    assert seen == {
        ("generation", "real"): 50,
        ("generation", "made"): 100,
        ("understanding", "real"): 100,
        ("text", "real"): 50,
    }


def test_a_step_is_a_function_of_seed_and_step_alone(sets):
    forwards, again = samples(opened(*sets), range(6)), opened(*sets)
    backwards = samples(again, reversed(range(6)))[::-1]
    assert ids(forwards) == ids(backwards) != ids(samples(opened(*sets, seed=6), range(6)))
    for one, other in zip(chain(*forwards), chain(*backwards), strict=True):
        if isinstance(one, Generation):
            np.testing.assert_array_equal(one.prompt, other.prompt)
    # A copy in another process has no state to miss.
    copy = pickle.loads(pickle.dumps(again))
    assert ids(samples(copy, [3])) == ids([forwards[3]])


def test_captions_are_dropped_anew_in_every_step(sets):
    source = opened(sets[1], samples={"generation": 12}, caption_drop=0.3)
    dropped = Counter()
    for step in range(60):
        for sample in samples(source, [step])[0]:
            assert isinstance(sample, Generation)
            pads = sample.prompt[1:-1] == TOKENIZER.pad
            assert pads.all() or not pads.any()
            dropped[sample.id] += bool(pads.all())
    # 720 draws: 216 are due, with a standard deviation of 12; each sample is dropped now and then.
    assert abs(sum(dropped.values()) - 216) < 50
    assert len(dropped) == 12 and all(0 < n < 60 for n in dropped.values())
    always = opened(sets[1], samples={"generation": 12}, caption_drop=1.0)
    assert all((s.prompt[1:-1] == TOKENIZER.pad).all() for s in samples(always, [0])[0])


def test_others_of_the_same_length_stand_in_for_broken_samples(tmp_path: Path):
    good = [understanding(i) for i in range(40)]
    broken = [understanding(100 + i, images=(b"no picture",)) for i in range(3)]
    data = str(write_set(tmp_path / "set", [*good[:20], *broken, *good[20:]]))
    log = tmp_path / "bad.jsonl"
    source = opened(data, samples={"understanding": 4}, bad_log=log)
    replaced = 0
    for step in range(11):
        entries = source.plan(step)
        loaded = [source.load(step, entry) for entry in entries]
        found = source.found(step)
        for entry, sample in zip(entries, loaded, strict=True):
            assert sample is not None and sample.length <= entry.tokens
            replaced += sample.id != source.sample_id(entry)
        assert len({sample.id for sample in loaded if sample}) == 4
        assert ids([loaded]) == ids(samples(opened(data, samples={"understanding": 4}), [step]))
        source.bad.settle(found)
    assert replaced >= 3 and source.bad.count == 3
    assert source.bad.reasons == {"picture cannot be decoded": 3}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["id"] for line in lines} == {"u100", "u101", "u102"}
    assert {line["number"] for line in lines} == {20, 21, 22}
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)


def test_where_nobody_can_stand_in_the_slots_stay_empty(tmp_path: Path):
    data = [understanding(i, images=(b"no picture",)) for i in range(4)]
    source = opened(str(write_set(tmp_path / "set", data)), samples={"understanding": 2})
    assert samples(source, [0]) == [[None, None]]
    assert {bad.number for bad in source.found(0)} == {0, 1, 2, 3}


def test_long_texts_and_unusable_records_count_before_the_first_step(tmp_path: Path):
    records = [text(i) for i in range(6)] + [text(6, rounds=40), replace(text(7), turns=())]
    data = str(write_set(tmp_path / "set", records))
    log = tmp_path / "bad.jsonl"
    source = opened(data, samples={"text": 2}, bad_log=log)
    assert source.bad.reasons == {"longer than a row": 1, "the turns make no prompt": 1}
    assert {entry.number for step in range(9) for entry in source.plan(step)} == set(range(6))
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [-1, -1]
    # With longer rows it is a sample like any other.
    assert opened(data, samples={"text": 2}, length=4000).bad.count == 1
    with pytest.raises(
        TooManyBadSamples, match="2 samples are broken, --max-bad-samples allows 1 "
    ):
        opened(data, samples={"text": 2}, max_bad_samples=1)


def test_a_record_that_changed_since_it_was_measured_is_broken(tmp_path: Path):
    data = write_set(tmp_path / "set", [text(1), text(2)])
    source = opened(str(data), samples={"text": 1})
    other = write_set(tmp_path / "other", [text(1, 3), text(2, 3)])
    for shard in (data / "text").iterdir():
        shard.write_bytes((other / "text" / shard.name).read_bytes())
    source = pickle.loads(pickle.dumps(source))  # as a worker gets it, with files yet to open
    assert samples(source, [0]) == [[None]]
    assert {bad.reason for bad in source.found(0)} == {"longer than when it was measured"}


def test_storage_that_fails_for_a_while_changes_nothing(tmp_path: Path, monkeypatch):
    data = write_set(tmp_path / "set", map(text, range(6)))
    kept = opened(str(data), samples={"text": 2})
    want = ids(samples(kept, [0]))
    source = pickle.loads(pickle.dumps(kept))  # as a worker gets it, with files yet to open
    away = (data / "text").rename(tmp_path / "away")
    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            away.rename(data / "text")

    monkeypatch.setattr(lengths.time, "sleep", wait)
    assert ids(samples(source, [0])) == want and waited == [1, 5]
    assert source.found(0) == []


def test_storage_that_goes_on_failing_ends_the_run_and_no_sample_is_broken(
    tmp_path: Path, monkeypatch
):
    data = write_set(tmp_path / "set", [text(1), text(2)])
    source = pickle.loads(pickle.dumps(opened(str(data), samples={"text": 1})))
    shutil.rmtree(data / "text")
    monkeypatch.setattr(lengths.time, "sleep", lambda seconds: None)
    with pytest.raises(RunFailed, match=r"text\[\d\] cannot be read, asked 4 times in 31 s"):
        samples(source, [0])
    assert source.found(0) == []


def test_a_file_that_is_open_and_fails_is_opened_anew(tmp_path: Path, monkeypatch):
    data = write_set(tmp_path / "set", [text(1), text(2)])
    source = opened(str(data), samples={"text": 1})
    want = samples(source, [0])
    records = source._parts["text"][0].records
    monkeypatch.setattr(lengths.time, "sleep", lambda seconds: None)

    class Failing:
        """A reader whose file handle went stale."""

        def read(self, positions):
            raise OSError(116, "Stale file handle")

    records._source._readers = [Failing()] * len(records._source._readers)
    assert ids(samples(source, [0])) == ids(want)


def test_data_without_image_tokens_is_refused_with_the_command_that_makes_them(tmp_path: Path):
    records = [replace(generation(i), codes=None, images=(picture(i),)) for i in range(4)]
    data = str(write_set(tmp_path / "set", records))
    with pytest.raises(InputError, match=r"no image tokens; fix: run janus-jax data encode .*set "):
        opened(data, samples={"generation": 1})
    assert opened(data, samples={"generation": 0}).plan(0) == []


def test_too_few_samples_are_refused(sets):
    with pytest.raises(InputError, match=r"--data .*made: 0 text samples; allowed: at least 2"):
        opened(sets[1], samples={"text": 2})
    with pytest.raises(InputError, match="12 generation samples; allowed: at least 20"):
        opened(*sets, samples={"generation": 40})


def test_what_is_kept_of_the_data_is_its_lengths(sets):
    assert len(pickle.dumps(opened(*sets))) < 100_000 + len(TOKENIZER.to_json())
