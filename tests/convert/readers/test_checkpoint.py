"""Directories of weights: which file is taken, and indexes that lead elsewhere or lie."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.readers.checkpoint import MAX_INDEX, open_checkpoint
from janus_jax.errors import InputError

ONE = {"a": np.ones((2, 3), np.float32)}
TWO = {"b": np.zeros(4, np.float32)}
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-1.safetensors", "model-2.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    save_file(ONE, directory / FIRST)
    save_file(TWO, directory / SECOND)
    write_index(directory, {"b": SECOND, "a": FIRST})
    return directory


def write_index(directory: Path, weight_map: object) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_read_in_the_order_of_the_index(sharded: Path):
    found = open_checkpoint(sharded)
    assert list(found.tensors) == ["b", "a"]
    assert [file.name for file in found.files] == [FIRST, SECOND]
    np.testing.assert_array_equal(found.tensors["a"].read(), ONE["a"])


def test_safetensors_are_preferred_and_it_is_said(sharded: Path):
    (sharded / "pytorch_model.bin").write_bytes(b"")
    found = open_checkpoint(sharded)
    assert (found.entry, found.passed_over) == (INDEX, ("pytorch_model.bin",))


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": "../outside.safetensors", "b": SECOND}, "not a plain file name.*outside"),
        ({"a": "/etc/passwd", "b": SECOND}, "are not .safetensors files: .*passwd"),
        ({"a": "..", "b": SECOND}, "not a plain file name|are not .safetensors"),
        ({"a": "sub/" + FIRST, "b": SECOND}, "not a plain file name"),
        ({"a": "sub\\" + FIRST, "b": SECOND}, "not a plain file name"),
        ({"a": FIRST + "\0", "b": SECOND}, "not a plain file name|are not .safetensors"),
        ({"a": "", "b": SECOND}, "not a plain file name|are not .safetensors"),
        ({"a": "model.pkl", "b": SECOND}, "are not .safetensors files"),
        ({"a": "model-9.safetensors", "b": SECOND}, "missing: .*model-9"),
        ({"a": 7, "b": SECOND}, "are not names: .*a"),
        ({"a": FIRST}, None),
        ({"a": FIRST, "b": FIRST}, "another shard|no shard has"),
        ({"a": FIRST, "b": SECOND, "c": FIRST}, "no shard has: .*c"),
        ({"b": SECOND, "z": FIRST}, "index lacks: .*a.*no shard has: .*z"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
        ("a", "no weight_map"),
        ({"a\nb": FIRST}, "name"),
    ],
)
def test_indexes_that_lie_are_refused(sharded: Path, weight_map: object, reason: str | None):
    (sharded.parent / "outside.safetensors").write_bytes((sharded / FIRST).read_bytes())
    write_index(sharded, weight_map)
    if reason is None:  # a shard that the index does not name is not read
        assert list(open_checkpoint(sharded).tensors) == ["a"]
        return
    with pytest.raises(InputError, match=reason) as caught:
        open_checkpoint(sharded)
    assert "\n" not in str(caught.value)


def test_a_tensor_in_two_shards_is_refused(sharded: Path):
    save_file({**ONE, **TWO}, sharded / SECOND)
    with pytest.raises(InputError, match=r"two shards have: .*a \(model-1.* and model-2"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"weight_map": {"a": "x", "a": "y"}}', b'{"a":' * 100_000, b"\xff"],
)
def test_indexes_that_are_no_objects_are_refused(sharded: Path, content: bytes):
    (sharded / INDEX).write_bytes(content)
    with pytest.raises(InputError):
        open_checkpoint(sharded)


def test_a_huge_index_is_refused_unread(sharded: Path):
    with (sharded / INDEX).open("wb") as file:
        file.truncate(MAX_INDEX + 1)
    with pytest.raises(InputError, match=f"at most {MAX_INDEX}"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("target", ["outside.safetensors", "loop", "gone"])
def test_links_that_lead_elsewhere_are_refused(sharded: Path, target: str):
    outside = sharded.parent / "outside.safetensors"
    (sharded / FIRST).rename(outside)
    where = {"outside.safetensors": outside, "loop": sharded / FIRST, "gone": sharded / "gone"}
    os.symlink(where[target], sharded / FIRST)
    with pytest.raises(InputError, match=r"outside the directory|missing"):
        open_checkpoint(sharded)


def hub_cache(root: Path, blobs: Path) -> Path:
    snapshot = root / "models--org--name" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    blobs.mkdir(parents=True, exist_ok=True)
    save_file(ONE, blobs / "blob")
    os.symlink(blobs / "blob", snapshot / "model.safetensors")
    return snapshot


def test_a_snapshot_of_the_hub_cache_is_read(tmp_path: Path):
    snapshot = hub_cache(tmp_path, tmp_path / "models--org--name" / "blobs")
    assert list(open_checkpoint(snapshot).tensors) == ["a"]


def test_a_snapshot_may_not_reach_another_repository(tmp_path: Path):
    snapshot = hub_cache(tmp_path, tmp_path / "models--other--name" / "blobs")
    with pytest.raises(InputError, match="outside the directory"):
        open_checkpoint(snapshot)


def test_shards_without_their_index_are_named(sharded: Path):
    (sharded / INDEX).unlink()
    with pytest.raises(InputError, match=r"only .*model-1.safetensors.*shards with their index"):
        open_checkpoint(sharded)
