"""A run on packed data sets: broken samples are counted in it, and its steps can be listed."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from janus_jax.config import DEBUG
from janus_jax.errors import InputError
from tests.train.data.records.sets import generation, picture, text, understanding, write_set
from tests.train.runs import make_idle_step, metrics, tiny
from train import loop, rundir
from train.checkpoints import Checkpoints
from train.data.bad_samples import TooManyBadSamples
from train.data.records.cli import main
from train.data.records.prepare import Preparation
from train.init import find_origin
from train.loop import run
from train.task import open_data

BROKEN = (b"no picture",)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    size = DEBUG.num_image_tokens, DEBUG.vq.codebook_size
    records = [
        *(understanding(i, images=(picture(i),)) for i in range(15)),
        *(understanding(i, images=BROKEN) for i in range(15, 18)),
        *map(text, range(8)),
        *(replace(generation(i), codes=rng.integers(0, size[1], size[0])) for i in range(12)),
    ]
    return write_set(tmp_path_factory.mktemp("data") / "set", records)


def config(data: Path, model: Path, **changes):
    settings = dict(data=(f"{data}:2",), init=(str(model),), preview_every=0, max_bad_samples=0.2)
    return tiny("emoji-stage3", steps=4, **{**settings, **changes})


def listed(*argv: str, capsys) -> list[str]:
    assert main(["ids", *argv]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_run_counts_broken_samples_and_its_steps_can_be_listed(
    data: Path, debug_dir: Path, tmp_path: Path, capsys
):
    run_dir = tmp_path / "run"
    assert run(config(data, debug_dir), run_dir, resume=False, overwrite=False) == 0
    assert [m["step"] for m in metrics(run_dir)] == [1, 2, 3, 4]
    bad = [json.loads(line) for line in (run_dir / "bad_samples.jsonl").read_text().splitlines()]
    # A loader process prepares the same steps; a run may go on with threads instead.
    other = tmp_path / "other"
    for resume, changes in ((False, {"data_processes": 1}), (True, {"data_workers": 2})):
        assert run(config(data, debug_dir, **changes), other, resume=resume, overwrite=False) == 0
    assert metrics(other) == metrics(run_dir)
    logs = [(path / "bad_samples.jsonl").read_text() for path in (run_dir, other)]
    assert logs[0] == logs[1]
    capsys.readouterr()
    lines = [
        json.loads(line)
        for line in listed(str(run_dir), "--step", "0", "--count", "4", "--json", capsys=capsys)
    ]
    assert [line["step"] for line in lines] == [step for step in range(4) for _ in range(10)]
    # 5 : 1 : 4, and of a pass of 4 steps over 18 records about pictures all but a few.
    kinds = [line["kind"] for line in lines[:10]]
    assert {k: kinds.count(k) for k in set(kinds)} == {
        "understanding": 5,
        "text": 1,
        "generation": 4,
    }
    taken = {line["id"] for line in lines if line["kind"] == "understanding"}
    broken = {"u15", "u16", "u17"}
    assert taken & broken <= {line["id"] for line in bad} <= broken and bad
    assert all(line["reason"] == "picture cannot be decoded" for line in bad)
    where = next(line["name"] for line in lines if line["id"] == bad[0]["id"])
    assert where == f"{data}/understanding[{bad[0]['number']}]"
    assert listed(str(run_dir), "--step", "3", capsys=capsys)[0].split("\t") == [
        str(value) for value in lines[30].values()
    ]


def test_a_run_with_too_many_broken_samples_ends(data: Path, debug_dir: Path, tmp_path: Path):
    with pytest.raises(TooManyBadSamples, match=r"--max-bad-samples allows 0 .*bad_samples.jsonl"):
        run(
            config(data, debug_dir, max_bad_samples=0),
            tmp_path / "run",
            resume=False,
            overwrite=False,
        )


def test_a_run_that_fills_rows_says_which_sample_is_next(
    data: Path, debug_dir: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(loop, "make_step", make_idle_step)
    rows = config(data, debug_dir, rows=2, batch_size=0, code_noise=0.0)
    assert run(rows, tmp_path, resume=False, overwrite=False) == 0
    samples = len(listed(str(tmp_path), "--step", "0", capsys=capsys))
    record = Checkpoints(tmp_path / "checkpoints").record()
    assert samples >= 10 and record.sampler["next_sample"] == 4 * samples


def test_a_run_goes_on_with_the_data_that_it_began_with(debug_dir: Path, tmp_path, monkeypatch):
    def begun(*args):
        raise MemoryError

    monkeypatch.setattr(loop, "make_task", begun)
    folder = write_set(tmp_path / "set", map(text, range(8)))
    run_dir, settings = tmp_path / "run", config(folder, debug_dir)
    for resume in (False, True):
        with pytest.raises(MemoryError):
            run(settings, run_dir, resume=resume, overwrite=False)
    (run_dir / "checkpoints" / "1").mkdir(parents=True)  # it has made a step
    # More records, and as many of the same sizes.
    for others in (range(9), range(1, 9)):
        write_set(folder, map(text, others))
        with pytest.raises(InputError, match=f"--data {folder}:2 does not hold what it held when"):
            run(settings, run_dir, resume=True, overwrite=False)
    with pytest.raises(MemoryError):
        run(settings, run_dir, resume=False, overwrite=True)


def test_lengths_of_data_that_cannot_be_written_are_kept_in_the_run(
    data: Path, debug_dir: Path, tmp_path: Path, monkeypatch
):
    copy = Path(shutil.copytree(data, tmp_path / "set", ignore=lambda *_: {"lengths"}))
    (copy / "lengths").write_text("in the way of the folder")
    made = config(copy, debug_dir)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    origin = find_origin(made, run_dir)
    first = open_data(made, origin, run_dir)
    kept = sorted(path.name.split("-")[0] for path in (run_dir / "lengths").iterdir())
    assert kept == ["generation", "text", "understanding"]
    monkeypatch.setattr(Preparation, "measure", None)
    assert open_data(made, origin, run_dir).plan(0) == first.plan(0)
    assert "lengths" in rundir.WRITTEN


def test_ids_of_runs_on_the_drawings_and_of_no_run(tmp_path: Path, capsys):
    for name in ("emoji-stage3", "emoji-vq"):
        (tmp_path / name).mkdir()
        rundir.write_json(tmp_path / name / "config.json", asdict(tiny(name)))
    lines = listed(str(tmp_path / "emoji-stage3"), "--step", "7", capsys=capsys)
    assert len(lines) == 10 and all(len(line.split("\t")) == 4 for line in lines)
    with pytest.raises(InputError, match="a run of the objective vq, whose samples have no ids"):
        main(["ids", str(tmp_path / "emoji-vq"), "--step", "0"])
    with pytest.raises(InputError, match="holds no run"):
        main(["ids", str(tmp_path), "--step", "0"])
    with pytest.raises(InputError, match="--step -1 --count 1"):
        main(["ids", str(tmp_path), "--step", "-1"])
