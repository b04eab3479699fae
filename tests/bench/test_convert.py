"""The benchmark runs whole at the size of the debug model, and its limit is one."""

import json
import subprocess
import sys

import pytest

from bench import convert as script
from bench import convert_checkpoint


def test_all_figures(tmp_path, capsys):
    assert script.main(["--size", "debug", "--json", "--directory", str(tmp_path)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["tensors"] == 254
    assert figures["bytes"] == 2_168_534
    assert figures["checked_tensors"] >= 13
    assert 0.05 < figures["peak_anon_rss_gb"] < 2.5
    assert figures["seconds"] > 0 and figures["seconds_over_cp"] > 0
    assert figures["seconds_over_torch"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_process_under_the_limit_cannot_take_more():
    for size, status in ((10**9, 0), (3 * 10**9, 1)):
        program = f"{script.LIMITED} bytearray({size})"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == status
        assert ("MemoryError" in done.stderr) == bool(status)


def test_values_differ_between_tensors_and_rows():
    _, tensors = convert_checkpoint.checkpoint("debug")
    first, second = (
        tensors[f"language_model.model.layers.{i}.mlp.up_proj.weight"].read() for i in (0, 1)
    )
    assert first.shape == second.shape
    assert len({row.tobytes() for row in (*first, *second)}) == 2 * len(first)


def test_a_changed_tensor_is_found(tmp_path, monkeypatch):
    convert_checkpoint.write(tmp_path / "source", "debug")
    script.convert(tmp_path / "source", tmp_path / "model")
    assert convert_checkpoint.check(tmp_path / "model", "debug")["checked_tensors"] >= 13
    monkeypatch.setattr(convert_checkpoint, "_PERIOD", 1_048_571)
    with pytest.raises(ValueError, match="is not what was written"):
        convert_checkpoint.check(tmp_path / "model", "debug")
