"""`janus-jax train`: presets, fields, and one line for what cannot be."""

from pathlib import Path

import pytest

from janus_jax.cli import main
from train import cli, loop
from train.presets import EMOJI_RECIPE, PRESETS


@pytest.fixture
def runs(monkeypatch) -> list[tuple]:
    """What would have been run."""
    seen = []

    def record(config, run_dir, **flags):
        seen.append((config, run_dir, {name for name, value in flags.items() if value}))
        return 0

    monkeypatch.setattr(loop, "run", record)
    return seen


def error_line(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_presets_recipes_and_examples(argv, capsys):
    assert main.run(["train", *argv]) == 0
    out = capsys.readouterr().out
    for name in (*PRESETS, *cli.RECIPES):
        assert f"  {name}" in out
    for flag in ("--resume", "--overwrite", "--fall-back", "--hosts.coordinator"):
        assert flag in out
    assert "janus-jax train emoji --run-dir runs" in out
    assert max(map(len, out.splitlines())) <= 100


def test_a_preset_s_help_begins_with_what_it_is(capsys):
    with pytest.raises(SystemExit) as stop:
        main.run(["train", "janus-pro-7b-stage2", "--help"])
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split("options")[0].split())
    assert "270,000 steps of 512 rows" in out and "29.6 GB a chip (compiled)" in out


def test_a_preset_s_help_shows_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        main.run(["train", "emoji-vq", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--run-dir", "--resume", "--steps", "--optimizer.learning-rate", "--trainable"):
        assert flag in out


def test_a_preset_alone_runs_as_it_is(runs):
    assert main.run(["train", "emoji-stage2"]) == 0
    assert runs == [(PRESETS["emoji-stage2"], Path("runs/emoji-stage2"), set())]


def test_fields_and_flags_are_set(runs, tmp_path):
    words = (
        f"train emoji-vq --run-dir {tmp_path} --resume --fall-back --optimizer.learning-rate 3e-4"
    )
    words += " --steps 7 --vq-loss.entropy 0.5 --trainable vq"
    assert main.run(words.split()) == 0
    ((config, run_dir, flags),) = runs
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.schedule == PRESETS["emoji-vq"].optimizer.schedule
    assert (config.steps, config.vq_loss.entropy, config.trainable) == (7, 0.5, ("vq",))
    assert (run_dir, flags) == (tmp_path, {"resume", "fall_back"})


def test_a_recipe_runs_all_its_presets_in_order(runs, tmp_path, capsys):
    (tmp_path / "emoji-vq").mkdir()
    (tmp_path / "emoji-vq" / "config.json").write_text("{}")
    assert main.run(["train", "emoji", "--run-dir", str(tmp_path), "--fall-back"]) == 0
    assert [config for config, *_ in runs] == list(EMOJI_RECIPE)
    # Only what is there can be gone on with.
    assert [flags for *_, flags in runs] == [{"resume", "fall_back"}, *[set()] * 5]
    assert [run_dir for _, run_dir, *_ in runs] == [tmp_path / c.name for c in EMOJI_RECIPE]
    assert str(tmp_path / "emoji-stage3" / "model") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("emoji-stag2", "did you mean emoji-stage2?"),
        ("cat", "emoji-stage1"),
        ("emoji-vq --steps many", "--steps"),
        ("emoji-vq --steps 0", "--steps 0; allowed: at least 1"),
        ("emoji-vq --optimizer.learning-rate -1", "--optimizer.learning-rate"),
        ("emoji-vq --stepz 5", "--steps"),
        ("emoji-stage2 --batch-size 7", "--batch-size 7"),
        ("emoji-vq --objective adversarial", "adversarial"),
        ("emoji --steps 5", "--steps"),
        ("emoji --resume --overwrite", "--resume and --overwrite exclude each other"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(runs, capsys, words, named):
    assert main.run(["train", *words.split()]) == 2
    assert named in error_line(capsys)
    assert runs == []


def test_an_unknown_model_is_refused_with_the_known_ones(tmp_path, capsys):
    words = ["train", "emoji-vq", "--model", "huge", "--run-dir", str(tmp_path / "run")]
    assert main.run(words) == 2
    line = error_line(capsys)
    assert "huge" in line and "debug" in line
