"""Lengths are measured once, kept beside the data, and never read for other data or prompts."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from janus_jax import hosts
from janus_jax.errors import InputError
from tests.train.data.records.sets import (
    PREPARATION,
    PROCESSOR,
    generation,
    text,
    understanding,
    write_set,
)
from train.data.records import lengths as lengths_module
from train.data.records.lengths import load_lengths
from train.data.records.prepare import Preparation
from train.data.records.record import Record
from train.data.records.shards import open_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    broken = replace(generation(3), codes=None)
    records = [generation(i, "heart " * (i + 1)) for i in range(3)]
    return write_set(tmp_path / "set", [*records, broken, *map(text, range(4)), understanding(9)])


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: Preparation, record: Record):
        raise AssertionError("measured again")

    monkeypatch.setattr(Preparation, "measure", measure)


def test_measured_once_and_then_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    found = load_lengths(open_records(folder), "generation", PREPARATION)
    want = [PREPARATION.measure(generation(i, "heart " * (i + 1))).tokens for i in range(3)]
    assert found.tokens.tolist() == [*want, 0]
    assert found.pictures.tolist() == found.text_targets.tolist() == [0] * 4
    assert [dict(b) | {"detail": ""} for b in found.broken] == [
        {"number": 3, "id": "g3", "reason": "no image tokens", "detail": ""}
    ]
    assert load_lengths(open_records(folder), "understanding", PREPARATION).pictures.tolist() == [1]
    forbid(monkeypatch)
    again = load_lengths(open_records(folder), "generation", PREPARATION)
    for name in ("tokens", "text_targets", "pictures", "broken"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_measured_again_for_other_prompts_and_other_records(folder: Path):
    measure = [load_lengths(open_records(folder), "text", PREPARATION).tokens.tolist()]
    other = replace(PREPARATION, processor=replace(PROCESSOR, system_prompt=""))
    measure.append(load_lengths(open_records(folder), "text", other).tokens.tolist())
    write_set(folder, [text(i, rounds=2) for i in range(5)])
    measure.append(load_lengths(open_records(folder), "text", PREPARATION).tokens.tolist())
    assert measure[0] > measure[1] and len(measure[2]) == 5 and measure[2][0] > measure[0][0]


def test_a_damaged_file_is_written_anew(folder: Path):
    found = load_lengths(open_records(folder), "text", PREPARATION)
    (path,) = (folder / "lengths").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    again = load_lengths(open_records(folder), "text", PREPARATION)
    np.testing.assert_array_equal(again.tokens, found.tokens)
    assert path.read_bytes() == whole and [p.name for p in (folder / "lengths").iterdir()] == [
        path.name
    ]


def test_a_folder_that_cannot_be_written_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def refuse(*args: object, **kwargs: object):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(lengths_module.tempfile, "mkstemp", refuse)
    assert len(load_lengths(open_records(folder), "text", PREPARATION).tokens) == 4
    assert "cannot be written (Read-only file system)" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_has_its_lengths_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    make = lengths_module.tempfile.mkstemp

    def refuse(prefix: str, dir: Path):
        if folder in dir.parents:
            raise OSError(30, os.strerror(30))
        return make(prefix=prefix, dir=dir)

    monkeypatch.setattr(lengths_module.tempfile, "mkstemp", refuse)
    mine = tmp_path / "run" / "lengths"
    mine.parent.mkdir()
    found = load_lengths(open_records(folder), "text", PREPARATION, fallback=mine)
    assert len(list(mine.iterdir())) == 1 and not capsys.readouterr().err
    forbid(monkeypatch)
    again = load_lengths(open_records(folder), "text", PREPARATION, fallback=mine)
    np.testing.assert_array_equal(again.tokens, found.tokens)


class Member:
    """One of two processes, as far as measuring knows it (`janus_jax.hosts.Team`)."""

    def __init__(self, index: int, votes: list[bool], both: threading.Barrier):
        self.index, self._votes, self._both = index, votes, both

    def any(self, mine: bool) -> bool:
        self._votes[self.index] = mine
        self._both.wait(30)
        found = any(self._votes)
        self._both.wait(30)
        return found


def measured_by(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which of two processes has measured each record, in order."""
    mine, votes, both = threading.local(), [False, False], threading.Barrier(2)
    by: list[int] = []
    measure = Preparation.measure

    def counted(self: Preparation, record: Record):
        by.append(mine.member.index)
        return measure(self, record)

    def process(index: int):
        mine.member = Member(index, votes, both)
        return load_lengths(open_records(folders[index]), "text", PREPARATION).tokens.tolist()

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        for module in (hosts, lengths_module):
            patch.setattr(module, "team", lambda: mine.member)
        patch.setattr(lengths_module, "_CHUNK", 3)
        patch.setattr(Preparation, "measure", counted)
        first, second = pool.map(process, (0, 1))
    assert first == second and len(first) == 4
    return by


def test_of_several_processes_one_measures_and_the_others_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert measured_by((folder, folder), monkeypatch) == [0] * 4
    assert measured_by((folder, folder), monkeypatch) == []
    # Each host has a copy of its own, and the first one's is measured already.
    other = Path(shutil.copytree(folder, tmp_path / "copy"))
    shutil.rmtree(other / "lengths")
    assert measured_by((folder, other), monkeypatch) == [1] * 4


def test_processes_measure_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch):
    alone = load_lengths(open_records(folder), "text", PREPARATION)
    (path,) = (folder / "lengths").iterdir()
    whole = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(lengths_module, "_SMALL", 0)
    monkeypatch.setattr(lengths_module, "_CHUNK", 3)
    seen = []
    found = load_lengths(
        open_records(folder), "text", PREPARATION, workers=2, progress=lambda *p: seen.append(p)
    )
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    assert path.read_bytes() == whole and seen == [(3, 4), (4, 4)]


def test_a_flipped_bit_costs_one_record_and_a_damaged_file_is_named(folder: Path):
    (shard, *_) = sorted((folder / "text").iterdir())
    content = bytearray(shard.read_bytes())
    place = content.index(b"what is 0?")
    content[place] ^= 1
    shard.write_bytes(content)
    found = load_lengths(open_records(folder), "text", PREPARATION)
    assert (found.tokens == 0).tolist() == [True, False, False, False]
    assert [b["reason"] for b in found.broken] == ["record cannot be read"]
    assert found.broken[0]["id"].endswith("text[0]")
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"shard '{shard}' cannot be opened"):
        open_records(folder)
