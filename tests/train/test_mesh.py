"""Meshes from the command line, and where the parts of a batch go."""

import jax
import numpy as np
import pytest

from janus_jax.errors import InputError
from train.mesh import batch_shards, own_groups, place, place_whole, training_mesh


def test_all_takes_the_devices_that_are_left():
    sizes = dict(training_mesh("fsdp=all,tensor=2").shape)
    assert sizes == {"data": 1, "fsdp": 4, "tensor": 2, "sequence": 1}
    assert training_mesh("fsdp=2").size == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsdp=16", "16 places for 8 devices"),
        ("fsdp=all,data=all", "one axis only"),
        ("fsdp=all,tensor=3", "do not divide by 3"),
        ("rows=2", "sizes of data, fsdp"),
    ],
)
def test_meshes_that_cannot_be(text, message):
    with pytest.raises(InputError, match=message):
        training_mesh(text)


def group(number: int) -> dict:
    rows = 10 * number + np.arange(2)
    return {
        "tokens": np.tile(rows[:, None], (1, 4)) * 100 + np.arange(4),
        "text_weights": {"text": rows.astype(np.float32)},
        "pixels": np.zeros((0, 3, 3), np.uint8),
    }


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mesh", ["fsdp=1", "fsdp=4", "data=2,fsdp=2,sequence=2"])
def test_groups_lie_one_after_another_each_on_its_own_devices(mesh, accumulate):
    where = training_mesh(mesh)
    each = batch_shards(where)
    assert own_groups(where, each) == list(range(each))
    groups = {n: group(n) for n in range(each * accumulate)}
    batch = place(groups, where, each=each, accumulate=accumulate)
    tokens = np.concatenate([groups[n]["tokens"] for n in groups])
    shape = (accumulate,) if accumulate > 1 else ()
    assert (np.asarray(batch["tokens"]) == tokens.reshape(*shape, 2 * each, 4)).all()
    assert batch["pixels"].shape == (*shape, 0, 3, 3)
    weights = batch["text_weights"]["text"]
    assert (
        np.asarray(weights).tolist()
        == np.reshape([10 * n + i for n in groups for i in range(2)], (*shape, -1)).tolist()
    )
    length = 4 // where.shape["sequence"]
    assert {s.data.shape for s in batch["tokens"].addressable_shards} == {(*shape, 2, length)}


def test_whole_batches_are_spread_over_the_batch_axes():
    mesh = training_mesh("data=2,fsdp=2,tensor=2")
    found = place_whole({"pixels": np.arange(8)}, mesh)["pixels"]
    assert np.asarray(found).tolist() == list(range(8))
    assert {s.data.shape for s in found.addressable_shards} == {(2,)}
    assert isinstance(found, jax.Array)
