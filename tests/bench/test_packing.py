"""The packing benchmark's figure, and what it prints."""

import json
import subprocess
import sys

import pytest

from bench import packing
from bench.packing import LENGTH, measure


def test_rows_of_the_published_mix_are_full():
    found = measure(batch_size=140, steps=50)
    assert found["packing_efficiency"] >= 0.99
    # No fewer rows could hold the tokens.
    assert found["rows"] == found["fewest_rows"] == -(-found["tokens_per_step"] // LENGTH) == 24


def test_one_line_of_json():
    command = [sys.executable, "bench/packing.py", "--json", "--batch-size", "20", "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["batch_size"] == 20


@pytest.mark.parametrize("flags", [["--batch-size", "15"], ["--steps", "0"]])
def test_other_sizes_are_refused(flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["packing.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        packing.main()
    assert stopped.value.code == 2
    assert "multiple of 10" in capsys.readouterr().err
