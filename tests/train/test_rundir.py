"""Run directories: what may be written over, and by whom."""

import dataclasses

import pytest

from janus_jax.errors import InputError
from tests.train.runs import tiny
from train import rundir
from train.presets import PRESETS
from train.watch.config import ProfileConfig

CONFIG = tiny("emoji-vq")


def prepare(run_dir, *, resume=False, overwrite=False):
    with rundir.locked(run_dir):
        rundir.prepare(CONFIG, run_dir, resume=resume, overwrite=overwrite)


def test_a_new_run_records_its_config(tmp_path):
    prepare(tmp_path / "a" / "b")
    record = rundir.read_json(tmp_path / "a" / "b" / "config.json")
    assert record["model"] == "debug" and record["vq_loss"]["entropy"] == 0.05
    prepare(tmp_path / "a" / "b", resume=True)


def test_how_a_run_is_watched_may_change_when_it_goes_on(tmp_path):
    prepare(tmp_path)
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    watched = dataclasses.replace(CONFIG, profile=ProfileConfig("10:15"), max_bad_samples=7)
    with rundir.locked(tmp_path):
        rundir.prepare(watched, tmp_path, resume=True, overwrite=False)
    record = rundir.read_json(tmp_path / "config.json")
    assert record["profile"] == {"steps": "10:15"} and record["max_bad_samples"] == 7
    with rundir.locked(tmp_path), pytest.raises(InputError, match="seed: 0 there, 1 here"):
        other = dataclasses.replace(watched, seed=1)
        rundir.prepare(other, tmp_path, resume=True, overwrite=False)


OTHER = dataclasses.replace(CONFIG, seed=1)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["the same settings", "others"])
def test_a_start_that_made_no_step_is_in_nobody_s_way(tmp_path, config, resume):
    prepare(tmp_path)
    new = (tmp_path / "config.json").read_text()
    resolved = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    rundir.settle(tmp_path, resolved, ["digest"])
    assert (tmp_path / "config.json").read_text() != new
    # The losses before the first step, and half a line of it.
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "heldout_loss": 1.0}\n{"step": 1, "lo')
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "tokenizer.json").touch()  # perhaps of another model
    (tmp_path / "lengths").mkdir()
    with rundir.locked(tmp_path):
        rundir.prepare(config, tmp_path, resume=resume, overwrite=False)
    assert rundir.read_config(tmp_path) == config and rundir.read_resolved(tmp_path) is None
    assert "digest" not in (tmp_path / "config.json").read_text()
    # Measuring took time, and what was measured is known by its content.
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".lock", "config.json", "lengths"]


@pytest.mark.parametrize("made", ["metrics.jsonl", "checkpoints/4", "done", "params", "model"])
def test_a_run_that_has_begun_is_kept(tmp_path, made):
    prepare(tmp_path)
    (tmp_path / made).parent.mkdir(exist_ok=True)
    (tmp_path / made).write_text('{"step": 1}\n')
    with pytest.raises(InputError, match="already holds a run; fix: add --resume to go on"):
        prepare(tmp_path)
    for resume in (False, True):
        named = r"another config \(seed: 0 there, 1 here\).*--overwrite"
        with rundir.locked(tmp_path), pytest.raises(InputError, match=named):
            rundir.prepare(OTHER, tmp_path, resume=resume, overwrite=False)
    assert rundir.read_config(tmp_path) == CONFIG and (tmp_path / made).exists()


def test_files_that_were_packed_are_not_thrown_away_for_other_settings(tmp_path):
    prepare(tmp_path)
    (tmp_path / "data" / "train").mkdir(parents=True)
    prepare(tmp_path)
    packed = "holds files packed for another config .*--overwrite to pack again"
    with rundir.locked(tmp_path), pytest.raises(InputError, match=packed):
        rundir.prepare(OTHER, tmp_path, resume=False, overwrite=False)
    assert (tmp_path / "data" / "train").exists()


def test_overwriting_deletes_what_the_run_has_written_and_nothing_else(tmp_path):
    run_dir = tmp_path / "run"
    prepare(run_dir)
    for folder in ("checkpoints/4", "data/train", "wandb", ".model.abc.writing"):
        (run_dir / folder).mkdir(parents=True)
    for name in ("done", "bad_samples-1.jsonl", "data/mine.jsonl", "notes.txt"):
        (run_dir / name).write_text("{}")
    prepare(run_dir, overwrite=True)
    left = sorted(str(p.relative_to(run_dir)) for p in run_dir.rglob("*"))
    assert left == [".lock", "config.json", "data", "data/mine.jsonl", "notes.txt"]
    (run_dir / "data" / "mine.jsonl").unlink()
    prepare(run_dir, overwrite=True)
    assert not (run_dir / "data").exists()


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.jsonl", "years of work"),
        # Those of a model directory of ours, and of one of transformers.
        ("config.json", '{"name": "janus-pro-1b", "llm": {"depth": 24}}'),
        ("config.json", '{"model_type": "janus", "architectures": ["Janus"]}'),
    ],
)
def test_a_directory_that_is_no_run_is_left_alone(tmp_path, flags, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="holds files but no run; allowed: an empty directory"):
        prepare(tmp_path, **flags)
    assert (tmp_path / name).read_text() == content


def test_what_file_systems_leave_in_a_directory_is_no_obstacle(tmp_path):
    for name in (".DS_Store", ".nfs000123", ".config.json.partial"):
        (tmp_path / name).write_text("")
    prepare(tmp_path)
    assert rundir.read_config(tmp_path) == CONFIG


def test_two_processes_do_not_train_in_one_directory(tmp_path):
    with (
        rundir.locked(tmp_path),
        pytest.raises(InputError, match="in use by another process"),
        rundir.locked(tmp_path),
    ):
        pass
    with rundir.locked(tmp_path):
        pass


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_file_in_the_place_of_the_directory(tmp_path, flag):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match=r"--run-dir .*run cannot be written"):
        prepare(tmp_path / "run", **{flag: True})


@pytest.mark.parametrize("content", ["", "[1]", '{"name": '])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        prepare(tmp_path, resume=True)


def test_json_is_written_whole(tmp_path):
    rundir.write_json(tmp_path / "done", {"a": 1})
    assert rundir.read_json(tmp_path / "done") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["done"]
    with pytest.raises(InputError, match="cannot be written"):
        rundir.write_json(tmp_path / "missing" / "done", {})


def test_the_config_of_a_run_is_read_back(tmp_path):
    for config in PRESETS.values():
        rundir.write_json(tmp_path / "config.json", dataclasses.asdict(config))
        assert rundir.read_config(tmp_path) == config
    content = dataclasses.asdict(config) | {"warmth": 3}
    rundir.write_json(tmp_path / "config.json", content)
    with pytest.raises(InputError, match="has the setting 'warmth', which this release does not"):
        rundir.read_config(tmp_path)
    with pytest.raises(InputError, match="holds no run"):
        rundir.read_config(tmp_path / "nothing")
