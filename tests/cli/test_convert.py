import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from janus_jax.cli.main import run
from janus_jax.locate import is_model
from janus_jax.params_io import open_params
from tests.convert import peers
from tests.convert.whole import save_deepseek


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sources") / "janus-tiny"
    save_deepseek(path, torch.float32)
    return path


@pytest.fixture(autouse=True)
def quiet():
    """The command silences a logger of this process."""
    level = logging.getLogger("absl").level
    yield
    logging.getLogger("absl").setLevel(level)


def test_json_says_what_was_written_and_verified(source, tmp_path, capsys):
    target = tmp_path / "model"
    assert run(["convert", str(source), str(target), "--verify", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.err == ""
    assert report["destination"] == str(target) and is_model(target)
    assert sorted(report["dropped"]) == sorted(peers.DROPPED)
    manifest = json.loads((target / "manifest.json").read_text())
    assert report["tensors"] == len(manifest["tensors"])
    sizes = [np.prod(entry["shape"]) * 4 for entry in manifest["tensors"].values()]
    assert report["bytes"] == sum(sizes)
    parity = report["verified"]["parity"]
    assert 0 < parity["text_logits"] < 1e-4 and 0 < parity["image_logits"] < 1e-4
    assert manifest["verified"] == report["verified"]
    assert "## Verified" in (target / "MODEL_CARD.md").read_text()


def test_a_dry_run_lists_everything_and_writes_nothing(source, tmp_path, capsys):
    target = tmp_path / "model"
    assert run(["convert", str(source), str(target), "--dry-run", "--to", "hf"]) == 0
    text = capsys.readouterr().out
    state = peers.deepseek_state(peers.hf_state(torch.float32))
    for key in (*state, *peers.hf_state(torch.float32)):
        assert f"{key} " in text, key
    for key in peers.DROPPED:
        assert any(line.split() == [key, "left", "behind"] for line in text.splitlines())
    assert "deepseek layout" in text and text.endswith("nothing written\n")
    assert run(["convert", str(source), str(target), "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(report["dropped"]) == sorted(peers.DROPPED)
    assert report["bytes"] == sum(line["nbytes"] for line in report["tensors"])
    assert list(tmp_path.iterdir()) == []


def test_a_part(tmp_path, capsys):
    config = transformers.LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "llama")
    target = tmp_path / "parts" / "llm"
    assert run(["convert", str(tmp_path / "llama"), str(target), "--part", "llm", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    stored = open_params(target / "params")
    assert report["tensors"] == len(stored) == len(model.state_dict())
    assert report["bytes"] == sum(value.numel() * 4 for value in model.state_dict().values())
    table = model.state_dict()["model.embed_tokens.weight"].numpy()
    np.testing.assert_array_equal(stored["llm/embed/embedding"].read(), table)
    part = json.loads((target / "part.json").read_text())
    assert (part["part"], part["source"], part["config"]["depth"]) == ("llm", "llama", 2)
    assert {name: list(t.shape) for name, t in stored.items()} == {
        name: entry["shape"] for name, entry in part["tensors"].items()
    }
    again = ["convert", str(tmp_path / "llama"), str(target), "--part", "llm", "--overwrite"]
    assert run(again) == 0
    (target / "notes.txt").write_text("years of work")
    assert run(again) == 2
    assert (target / "notes.txt").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--max-shard-size", "0"], "--max-shard-size is 0.0"),
        (["--part", "vq", "--to", "hf"], "--part goes with"),
        (["--to", "gguf"], "--to"),
        (["--dtype", "int8"], "--dtype"),
    ],
)
def test_unusable_flags(flags, named, source, tmp_path, capsys):
    assert run(["convert", str(source), str(tmp_path / "model"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error
    assert list(tmp_path.iterdir()) == []


def test_destinations_that_cannot_be_written(source, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "model"):
        assert run(["convert", str(source), str(target), "--overwrite"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{str(target)!r}" in error
    assert (tmp_path / "file").read_text() == "mine"


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        run(["convert", "--help"])
    text = capsys.readouterr().out
    assert "janus-jax convert deepseek-ai/Janus-Pro-1B models/pro-1b" in text
    for flag in ("--to", "--dtype", "--part", "--verify", "--dry-run", "--json", "--overwrite"):
        assert flag in text
