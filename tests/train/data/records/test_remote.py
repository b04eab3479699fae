"""Inputs on s3:// and gs://: real clients, and a store on this machine that speaks to them."""

import dataclasses
import json
from pathlib import Path

import pytest

from janus_jax.errors import InputError
from tests.train.data.records.files import (
    COUNT,
    picture,
    write_jsonl,
)
from tests.train.data.records.object_store import Store
from tests.train.data.records.remote_store import REFUSALS, SCHEMES, files, one_line, packed
from train import own_data
from train.data.records import remote, sources
from train.data.records.shards import open_records
from train.presets import PRESETS

INPUTS = [
    ["in/captions.jsonl"],
    ["in/one.tar"],
    ["in/one.parquet"],
    ["in/*.tar", "in/t?o.parquet"],
    ["in/[ot]*.parquet"],
    ["*/captions.jsonl"],
    ["in"],
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_packed_set_is_that_of_the_same_files_on_disk(
    store: Store, tmp_path: Path, monkeypatch, scheme
):
    monkeypatch.setattr(sources, "_LINES", 4)  # units of 4, 4 and 2 lines
    monkeypatch.setattr(remote, "_BLOCK", 4000)  # files of many blocks
    for i, names in enumerate(INPUTS):
        here = packed(tmp_path / f"here{i}", *(f"{store.root}/bucket/{n}" for n in names))
        there = packed(tmp_path / f"there{i}", *(f"{scheme}://bucket/{n}" for n in names))
        assert files(here) == files(there), names
        assert len(open_records(there).kinds["generation"]) >= COUNT


def test_two_processes_give_the_same_files_as_one(store: Store, tmp_path: Path):
    inputs = ["s3://bucket/in/captions.jsonl", "gs://bucket/in/one.tar"]
    one = packed(tmp_path / "one", *inputs)
    two = packed(tmp_path / "two", *inputs, workers=2)
    assert files(one) == files(two)
    assert len(open_records(two).kinds["generation"]) == 2 * COUNT


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pictures_are_found_beside_the_file_and_broken_ones_are_listed(
    store: Store, tmp_path: Path, monkeypatch, scheme
):
    monkeypatch.setattr(sources, "MAX_IMAGE_BYTES", len(picture(1)))
    store.refused["bucket/in/more/0.png"] = 403
    out = packed(tmp_path / "out", f"{scheme}://bucket/in/more/odd.jsonl", max_broken=0.9)
    data = open_records(out)
    assert [r.images[0] for r in data.kinds["generation"]] == [picture(0), picture(1)]
    assert data.manifest["broken"]["reasons"] == {
        "image file cannot be read": 2,
        "image file is missing": 1,
        "picture cannot be decoded": 2,
    }
    # Nothing is asked first, such as how large it is.
    assert sum(path.endswith("in/0.png") for _, path in store.asked) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_picture_may_be_named_by_its_address(store: Store, tmp_path: Path, scheme):
    lines = [
        {"image": f"{scheme}://bucket/in/{name}", "caption": "x"} for name in ("3.png", "gone.png")
    ]
    lines.append({"image": "https://example.org/4.png", "caption": "x"})
    file = write_jsonl(tmp_path / "in.jsonl", lines)
    out = packed(tmp_path / "out", str(file), max_broken=0.9)
    data = open_records(out)
    assert [r.images for r in data.kinds["generation"]] == [(picture(3),)]
    reasons = {"image file cannot be read": 1, "image file is missing": 1}
    assert data.manifest["broken"]["reasons"] == reasons


@pytest.mark.parametrize(
    ("scheme", "status", "reason", "line"),
    [
        ("s3", 400, "", "cannot be read: .*fix: check the network"),
        ("gs", 400, "", "cannot be read: .*fix: check the network"),
        (
            "gs",
            403,
            "User Rate Limit Exceeded",
            "cannot be read now: .*fix: wait, then run the same",
        ),
        ("gs", 403, "The project exceeded the rate limit", "cannot be read now: .*fix: wait, then"),
        *REFUSALS,
    ],
)
def test_a_store_that_fails_ends_the_packing_and_the_same_call_goes_on(
    store: Store, tmp_path: Path, monkeypatch, scheme, status, reason, line
):
    monkeypatch.setattr(sources, "_LINES", 4)
    name = f"{scheme}://bucket/in/captions.jsonl"
    store.refused["bucket/in/5.png"] = status
    store.reason = reason
    with pytest.raises(InputError, match=f"'{scheme}://bucket/in/5.png' {line}"):
        packed(tmp_path / "out", name, max_broken=1.0)
    assert not (tmp_path / "out" / "manifest.json").exists()
    store.refused.clear()
    store.asked.clear()
    packed(tmp_path / "out", name, max_broken=1.0)
    assert not any(path.endswith("/1.png") for _, path in store.asked)  # of the unit that was done
    assert files(tmp_path / "out") == files(
        packed(tmp_path / "here", f"{store.root}/bucket/in/captions.jsonl")
    )


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        *(("s3", code) for code in ("AccessDenied", "AllAccessDisabled", "InvalidObjectState")),
        ("s3", "403"),
        ("gs", "a@b does not have storage.objects.get access"),
    ],
)
def test_a_picture_that_is_denied_is_a_broken_record(store: Store, tmp_path: Path, scheme, reason):
    store.refused["bucket/in/5.png"] = 403
    store.reason = reason
    out = packed(tmp_path / "out", f"{scheme}://bucket/in/captions.jsonl", max_broken=0.2)
    (broken,) = json.loads((out / "units" / "00000.json").read_text())["broken"]
    assert broken["reason"] == "image file cannot be read"
    assert "access is denied" in broken["detail"]


def test_a_name_with_the_words_of_a_rate_limit_is_denied_like_any_other(
    store: Store, tmp_path: Path
):
    store.refused["bucket/in/rate exceeded.png"] = 403
    names = ["rate exceeded.png", "1.png"]
    lines: list[object] = [{"image": f"gs://bucket/in/{n}", "caption": "x"} for n in names]
    packed(tmp_path / "out", str(write_jsonl(tmp_path / "in.jsonl", lines)), max_broken=0.5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_files_of_a_store_do_not_name_files_of_this_machine(store: Store, tmp_path: Path, scheme):
    mine = tmp_path / "mine.png"
    mine.write_bytes(picture(1))
    # However far up a relative path goes, it stays in its bucket.
    names = [str(mine), f"/{mine}", "../" * 9 + str(mine)[1:], "../" * 9 + "in/2.png"]
    (store.root / "bucket" / "odd").mkdir(exist_ok=True)
    lines: list[object] = [{"image": name, "caption": "x"} for name in names]
    write_jsonl(store.root / "bucket" / "odd" / "mine.jsonl", lines)
    out = packed(tmp_path / "out", f"{scheme}://bucket/odd/mine.jsonl", max_broken=0.9)
    data = open_records(out)
    assert [r.images for r in data.kinds["generation"]] == [(picture(2),)]
    reasons = {"image file cannot be read": 2, "image file is missing": 1}
    assert data.manifest["broken"]["reasons"] == reasons
    (first, *_) = json.loads((out / "units" / "00000.json").read_text())["broken"]
    assert first["detail"].startswith(
        f"{mine} is of this machine, {scheme}://bucket/odd/mine.jsonl"
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("all_of_it", [False, True])
@pytest.mark.parametrize("name", ["captions.jsonl", "one.tar", "one.parquet"])
def test_an_object_that_becomes_shorter_while_it_is_read_is_one_line(
    store: Store, tmp_path: Path, capfd, scheme, name, all_of_it
):
    size = (store.root / "bucket" / "in" / name).stat().st_size
    store.lost[f"bucket/in/{name}"] = size if all_of_it else 1
    found = one_line(capfd, [f"{scheme}://bucket/in/{name}", "--out", str(tmp_path / "out")])
    assert found.startswith(f"'{scheme}://bucket/in/{name}' has changed while it was read (")
    assert found.endswith("; fix: run the same command again\n")


def test_a_run_packs_files_of_a_store(store: Store, debug_dir: Path, tmp_path: Path):
    config = dataclasses.replace(
        PRESETS["finetune"],
        init=(str(debug_dir),),
        data=("s3://bucket/in/captions.jsonl", "gs://bucket/in/*.tar"),
        captions="understanding",
        heldout_share=0.0,
    )
    (tmp_path / "config.json").write_text("{}")  # of a run that begins
    config = own_data.resolve(config, tmp_path)
    (packed_set,) = config.data
    assert len(open_records(packed_set).kinds["understanding"]) == 3 * COUNT
