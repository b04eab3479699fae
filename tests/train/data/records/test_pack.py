import json
import subprocess
import sys
from pathlib import Path

import pytest

from janus_jax.errors import InputError
from tests.train.data.records.files import (
    CAPTION,
    COUNT,
    captions_jsonl,
    captions_parquet,
    captions_tar,
    picture,
    tar_shard,
    turns,
    write_jsonl,
)
from train.data.records import shards, sources
from train.data.records.pack import PackSettings, pack
from train.data.records.shards import open_records


def run(inputs: list[Path], out: Path, **options):
    settings = PackSettings(tuple(map(str, inputs)), options.pop("captions", "generation"))
    return pack(settings, out, workers=options.pop("workers", 1), **options)


@pytest.mark.parametrize("write", [captions_jsonl, captions_tar, captions_parquet])
def test_every_format_gives_the_same_records(tmp_path: Path, write):
    suffix = {captions_tar: "in.tar", captions_parquet: "in.parquet"}.get(write)
    source = write(tmp_path / suffix if suffix else tmp_path)
    manifest = run([source], tmp_path / "out")
    assert manifest["kinds"]["generation"]["records"] == COUNT
    assert manifest["broken"] == {"records": 0, "reasons": {}}
    records = open_records(tmp_path / "out").kinds["generation"]
    assert [r.caption for r in records] == [CAPTION.format(i) for i in range(COUNT)]
    assert [r.images for r in records] == [(picture(i),) for i in range(COUNT)]
    assert len({r.id for r in records}) == COUNT


def test_kinds_lie_apart_and_any_record_is_read_alone(tmp_path: Path):
    captions = captions_jsonl(tmp_path)
    chats = write_jsonl(tmp_path / "chats.jsonl", [{"turns": turns(i)} for i in range(3)])
    run([captions, chats], tmp_path / "out", captions="both")
    data = open_records(tmp_path / "out")
    assert {k: len(v) for k, v in data.kinds.items()} == {
        "understanding": COUNT,
        "text": 3,
        "generation": COUNT,
    }
    assert data.kinds["text"][2].turns[1] == ("assistant", "2")
    assert data.kinds["generation"][7].images == (picture(7),)
    assert [r.id for r in data.kinds["text"][1:]] == ["chats.jsonl:2", "chats.jsonl:3"]


@pytest.fixture
def broken_ten_ways(tmp_path: Path) -> list[Path]:
    """990 good records and ten broken ones, each in its own way."""
    captions_jsonl(tmp_path)
    (tmp_path / "cut.png").write_bytes(picture(1)[:40])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    lines: list[object] = [
        {"image": f"{i % COUNT}.png", "caption": CAPTION.format(i)} for i in range(990)
    ]
    lines[100:100] = [
        [],
        {"image": "0.png"},
        {"image": "gone.png", "caption": "x"},
        {"image": "cut.png", "caption": "x"},
        {"image": "text.png", "caption": "x"},
        {"image": "empty.png", "caption": "x"},
        {"image": "0.png", "caption": 5},
        {"image": "0.png", "caption": "x", "kind": "video"},
        {"turns": [{"role": "user", "text": "hello"}]},
    ]
    path = write_jsonl(tmp_path / "in.jsonl", lines)
    text = path.read_text().splitlines(keepends=True)
    text.insert(500, '{"image": "0.png", "caption": \n')
    path.write_text("".join(text))
    return [path]


def test_broken_records_are_counted_named_and_limited(tmp_path: Path, broken_ten_ways):
    manifest = run(broken_ten_ways, tmp_path / "out")
    assert manifest["kinds"]["generation"]["records"] == 990
    assert manifest["broken"] == {
        "records": 10,
        "reasons": {
            "caption is not a text": 1,
            "image file is missing": 1,
            "neither caption nor turns": 1,
            "not JSON": 1,
            "not an object of fields": 1,
            "picture cannot be decoded": 3,
            "turns do not go user, assistant, ... and end with assistant": 1,
            "unknown kind": 1,
        },
    }
    listed = json.loads((tmp_path / "out/units/00000.json").read_text())["broken"]
    assert listed[0]["id"] == "in.jsonl:101"
    with pytest.raises(InputError, match=r"10 of 1000 records are broken \(1.0%\).*in.jsonl:101"):
        run(broken_ten_ways, tmp_path / "strict", max_broken=0.009)
    assert not (tmp_path / "strict/manifest.json").exists()
    # What is packed already is taken with a higher limit.
    before = (tmp_path / "strict/units/00000.json").stat().st_mtime_ns
    run(broken_ten_ways, tmp_path / "strict", max_broken=0.5)
    assert (tmp_path / "strict/units/00000.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("cut_off", ["the plan", "the folder of units"])
def test_a_run_that_was_killed_as_it_began_goes_on(tmp_path: Path, monkeypatch, cut_off):
    source, out = captions_jsonl(tmp_path), tmp_path / "out"

    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if cut_off == "the plan":
            patch.setattr(shards, "write_json", kill)
        else:
            make = Path.mkdir
            patch.setattr(
                Path, "mkdir", lambda p, **how: kill() if p.name == "units" else make(p, **how)
            )
        with pytest.raises(KeyboardInterrupt):
            run([source], out)
    assert run([source], out)["kinds"]["generation"]["records"] == COUNT


def test_a_file_that_cannot_grow_is_said_and_the_same_call_goes_on(tmp_path: Path):
    """As on a full disk, where Riegeli raises an error of its own."""
    source, out = captions_jsonl(tmp_path), tmp_path / "out"
    program = """
import resource, sys
from train.data.records.pack import PackSettings, pack
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
from pathlib import Path
try:
    pack(PackSettings((sys.argv[1],)), Path(sys.argv[2]), workers=1)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(source), str(out)], capture_output=True, text=True
    )
    shard = out / "generation" / "00000.array_record"
    assert done.stdout.startswith(f"InputError shard '{shard}' cannot be written (")
    assert done.stdout.count("\n") == 1 and "run the same command again" in done.stdout
    assert not list(out.rglob("*.array_record")) and not (out / "manifest.json").exists()
    assert run([source], out)["kinds"]["generation"]["records"] == COUNT
    assert not list(out.rglob(".*"))


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sources, "_LINES", 4)  # units of 4, 4 and 2 lines
    source = captions_jsonl(tmp_path)
    whole, part = tmp_path / "whole", tmp_path / "part"
    run([source], whole)
    run([source], part)
    # As after a kill during unit 1: its shard half written, nothing that says it is done.
    (part / "manifest.json").unlink()
    (part / "units/00001.json").unlink()
    shard = part / "generation/00001.array_record"
    (part / "generation/.00001.array_record.writing").write_bytes(shard.read_bytes()[:50])
    shard.unlink()
    with pytest.raises(InputError, match="run the same janus-jax data command again"):
        open_records(part)
    kept = (part / "generation/00000.array_record").stat().st_mtime_ns
    reports: list[tuple[int, int]] = []
    run([source], part, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(2, 3), (3, 3)]
    assert (part / "generation/00000.array_record").stat().st_mtime_ns == kept
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(part) for p in part.rglob("*") if p.is_file())
    assert all((whole / f).read_bytes() == (part / f).read_bytes() for f in files)


def test_processes_give_the_same_files_as_one(tmp_path: Path, monkeypatch):
    inputs = [captions_tar(tmp_path / f"{i}.tar") for i in range(2)]
    run(inputs, tmp_path / "one")
    run(inputs, tmp_path / "two", workers=2)
    for path in (tmp_path / "one").rglob("*.*"):
        assert (
            path.read_bytes()
            == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
        )


def test_other_inputs_or_a_foreign_folder_are_refused(tmp_path: Path):
    source = captions_jsonl(tmp_path)
    run([source], tmp_path / "out")
    with pytest.raises(InputError, match="begun with other inputs or settings"):
        run([source], tmp_path / "out", captions="both")
    assert run([source], tmp_path / "out", captions="both", overwrite=True)["captions"] == "both"
    with pytest.raises(InputError, match="holds something that is not a packed data set"):
        run([source], tmp_path, overwrite=True)
    assert source.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone.jsonl", "does not exist"), ("*.gone", "no file matches"), ("a.csv", "unknown suffix")],
)
def test_unusable_inputs(tmp_path: Path, name: str, reason: str):
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(InputError, match=reason):
        run([tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tar_cut_short_keeps_what_was_whole(tmp_path: Path):
    path = captions_tar(tmp_path / "in.tar")
    data = path.read_bytes()
    path.write_bytes(data[: 1024 * 6 + 700])  # 4 blocks of 512 a sample: three samples and a bit
    manifest = run([path], tmp_path / "out", max_broken=0.5)
    assert manifest["kinds"]["generation"]["records"] == 3
    assert manifest["broken"]["reasons"] == {"tar file is damaged from here on": 1}


def test_json_beside_a_picture_in_a_tar(tmp_path: Path):
    sample = {"jpg": picture(3), "json": json.dumps({"turns": turns(3), "image": "x"}).encode()}
    run([tar_shard(tmp_path / "in.tar", [("a", sample)])], tmp_path / "out")
    (record,) = open_records(tmp_path / "out").kinds["understanding"]
    assert (record.id, record.images) == ("in.tar:a", (picture(3),))


def test_a_missing_shard_is_named(tmp_path: Path):
    run([captions_jsonl(tmp_path)], tmp_path / "out")
    (tmp_path / "out/generation/00000.array_record").unlink()
    with pytest.raises(InputError, match=r"00000.array_record' is missing"):
        open_records(tmp_path / "out")
