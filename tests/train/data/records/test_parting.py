"""What is held out: whole pictures, by a hash, whatever the order."""

from pathlib import Path

import numpy as np
import pytest

from tests.train.data.records.sets import generation, picture, text, understanding, write_set
from train.data.records.parting import key_of, part
from train.data.records.record import Record
from train.data.records.shards import RecordSet, open_records

COUNT = 40


def drawn(i: int) -> Record:
    """The picture of `understanding(i)` as one to draw, encoded, with its file still there."""
    made = generation(i)
    return Record(made.id, "generation", (picture(i),), caption=made.caption, codes=made.codes)


def parted(folder: Path, records: list[Record], share: float) -> tuple[RecordSet, RecordSet]:
    whole = open_records(write_set(folder / "whole", records))
    training, heldout = folder / "train", folder / "heldout"
    part(whole.kinds, training, heldout, share=share, source=("mine.jsonl",))
    return open_records(training), open_records(heldout)


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> tuple[RecordSet, RecordSet]:
    numbers = range(COUNT)
    records = [*map(understanding, numbers), *map(text, numbers), *map(drawn, numbers)]
    return parted(tmp_path_factory.mktemp("sides"), records, 0.25)


def ids(data: RecordSet, kind: str) -> set[str]:
    return {record.id for record in data.kinds.get(kind, ())}


def test_everything_about_a_picture_is_on_one_side(sides):
    training, heldout = sides
    for data in sides:
        assert {i[1:] for i in ids(data, "understanding")} == {
            i[1:] for i in ids(data, "generation")
        }
    for kind in ("understanding", "text", "generation"):
        assert not ids(training, kind) & ids(heldout, kind)
        assert len(ids(training, kind) | ids(heldout, kind)) == COUNT
    # 40 pictures and 40 texts, a quarter of them.
    assert len(ids(heldout, "understanding")) + len(ids(heldout, "text")) == 20
    assert training.manifest["source"] == ["mine.jsonl"]


def test_the_files_of_encoded_pictures_are_left_out_and_nothing_else(sides):
    for data in sides:
        for record in data.kinds["generation"]:
            number = int(record.id[1:])
            assert record.images == () and record.caption == drawn(number).caption
            np.testing.assert_array_equal(record.codes, drawn(number).codes)
        for record in data.kinds["understanding"]:
            assert record.images == (picture(int(record.id[1:])),)
            assert record.turns == understanding(int(record.id[1:])).turns


def test_sides_do_not_depend_on_the_order_and_hardly_on_what_is_added(tmp_path, sides):
    numbers = list(range(COUNT + 1))[::-1]
    records = [*map(understanding, numbers), *map(text, numbers[1:])]
    _, heldout = parted(tmp_path, records, 0.25)
    for kind in ("understanding", "text"):
        assert len(ids(heldout, kind) ^ ids(sides[1], kind)) <= 1


@pytest.mark.parametrize(
    ("count", "share", "held"), [(2, 0.05, 1), (3, 0.9, 2), (1, 0.5, 0), (8, 0.0, 0), (50, 0.05, 2)]
)
def test_few_records_leave_something_on_both_sides(tmp_path, count, share, held):
    training, heldout = parted(tmp_path, [text(i) for i in range(count)], share)
    assert len(ids(heldout, "text")) == held
    assert len(ids(training, "text")) == count - held


def test_an_interrupted_parting_is_made_again(tmp_path):
    records = [text(i) for i in range(6)]
    first = [ids(data, "text") for data in parted(tmp_path, records, 0.5)]
    (tmp_path / "train" / "manifest.json").unlink()
    assert [ids(data, "text") for data in parted(tmp_path, records, 0.5)] == first


def test_keys_are_those_of_pictures_or_ids():
    assert key_of(understanding(1)) == key_of(drawn(1)) != key_of(drawn(2))
    assert key_of(text(1)) != key_of(text(2))
