"""Held-out samples: each once, captions never dropped, broken ones left out."""

from tests.train.data.records.sets import (
    CODEBOOK_SIZE,
    IMAGE_TOKENS,
    PROCESSOR,
    TOKENIZER,
    generation,
    text,
    understanding,
    write_set,
)
from train.data import every_sample
from train.data.batches import PackedBatches
from train.data.every_sample import EverySample
from train.data.record_source import RecordSource, open_source


def opened(folder, records) -> RecordSource:
    return open_source(
        [str(write_set(folder, records))],
        samples={"understanding": 1, "text": 1, "generation": 1},
        length=200,
        seed=0,
        tokenizer=TOKENIZER,
        processor=PROCESSOR,
        image_tokens=IMAGE_TOKENS,
        codebook_size=CODEBOOK_SIZE,
    )


def test_each_sample_is_measured_once_and_later_steps_are_empty(tmp_path):
    records = [*map(understanding, range(3)), *map(text, range(4)), *map(generation, range(5))]
    broken = [("generation", b"nothing like a record")]
    source = EverySample(opened(tmp_path / "set", [*records, *broken]), at_once=5)
    loaded = [[source.load(s, e) for e in source.plan(s)] for s in range(source.steps + 2)]
    assert [len(step) for step in loaded] == [5, 5, 2, 0, 0]
    assert sorted(s.id for step in loaded for s in step) == sorted(r.id for r in records)
    # And packed: one shape for all steps, the last one partly empty.
    batches = PackedBatches(
        source,
        kinds=("understanding", "text", "generation"),
        length=200,
        image_size=16,
        image_tokens=IMAGE_TOKENS,
    )
    steps = [batches(s) for s in range(source.steps)]
    assert {step["tokens"].shape for step in steps} == {steps[0]["tokens"].shape}
    assert sum(int(step["image_weights"].sum()) for step in steps) == 5 * IMAGE_TOKENS


def test_many_samples_are_thinned_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(every_sample, "MOST", 4)
    records = [*map(understanding, range(1)), *map(text, range(1)), *map(generation, range(8))]
    source = EverySample(opened(tmp_path / "set", records), at_once=2)
    taken = [entry for step in range(source.steps) for entry in source.plan(step)]
    assert len(taken) == 4
    assert [e.number for e in taken if e.kind == "generation"] == [1, 4, 7]
