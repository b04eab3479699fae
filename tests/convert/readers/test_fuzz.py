"""Damaged weight files: refused in one line, or read within their bounds. Nothing else happens.

`python bench/fuzz_readers.py` does the same for as long as one likes.
"""

import random
from pathlib import Path

import pytest

from tests.convert.readers.mutations import damaged, seeds, survives

NAMES = ["today.bin", "torch2.bin", "pickle.bin", "m.safetensors", "header.safetensors"]
ROUNDS = 1500


@pytest.mark.parametrize("name", NAMES)
def test_random_damage(name: str, tmp_path: Path):
    seed, dice = seeds()[name], random.Random(name)
    path = tmp_path / name
    path.write_bytes(seed.file)
    assert not survives(path)
    refused = 0
    for _ in range(ROUNDS):
        path.unlink()  # a new file each time: an open map must not be shortened
        path.write_bytes(damaged(seed, dice))
        refused += survives(path)
    # Flips inside the numbers are no damage that a reader could see; most others are.
    assert ROUNDS / 2 < refused < ROUNDS


@pytest.mark.parametrize("name", NAMES)
def test_every_length(name: str, tmp_path: Path):
    data, path = seeds()[name].file, tmp_path / name
    for length in range(0, len(data), max(len(data) // 200, 1)):
        path.unlink(missing_ok=True)
        path.write_bytes(data[:length])
        assert survives(path), length
