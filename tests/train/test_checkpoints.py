"""Checkpoints of a toy state: how many, of what, and what damage says."""

import math
import re
import shutil
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.errors import InputError
from janus_jax.sharding import make_mesh
from train.checkpoints import Checkpoints
from train.state import TrainState


def state(value: float = 0.0, size: int = 4, **extra) -> Any:
    """A state with plain dictionaries in the place of module states."""
    return toy({"w": jnp.full((size,), value), **extra}, jnp.zeros((size,)))


def toy(trainable: Any, moments: Any) -> Any:
    frozen: Any = {"v": jnp.arange(3.0)}
    guard: Any = ()
    return TrainState(jnp.asarray(7, jnp.int32), trainable, frozen, (moments, ()), guard)


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4, 6):
        checkpoints.save(step, state(float(step)))
    checkpoints.close()
    return tmp_path


def test_the_two_newest_are_kept_and_the_newest_is_read(saved):
    assert sorted(int(p.name) for p in saved.iterdir()) == [4, 6]
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest() == 6
    restored = checkpoints.restore(jax.eval_shape(lambda: state()))
    jax.tree.map(np.testing.assert_array_equal, restored, state(6.0))
    assert jax.tree.structure(restored) == jax.tree.structure(state())
    checkpoints.close()


def test_a_record_comes_with_the_arrays(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(
        3, state(), metrics={"loss": 2.5}, sampler={"next_sample": 24}, config={"seed": 1}
    )
    checkpoints.close()
    record = Checkpoints(tmp_path).record()
    assert (record.step, record.config, record.mesh, record.processes) == (3, {"seed": 1}, {}, 1)
    assert record.checksums.keys() == {
        *(".step", ".trainable['w']", ".frozen['v']", ".opt_state[0]")
    }
    assert re.fullmatch(
        r"step 3, saved \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ, loss 2.5, on one device, 1 process, "
        "next sample 24",
        record.summary(),
    )


def test_another_structure_is_refused_with_a_table_of_every_difference(saved, capsys):
    checkpoints = Checkpoints(saved)
    other: Any = state(size=5, extra=jnp.zeros(2))
    other = replace(other, step=jnp.zeros((), jnp.int16), frozen={})
    with pytest.raises(InputError) as error:
        checkpoints.restore(other)
    rows = [re.split("  +", line) for line in capsys.readouterr().err.splitlines()]
    assert rows[0] == ["array", "checkpoint, step 6", "this run"]
    assert sorted(rows[1:]) == [
        [".frozen['v']", "float32 [3]", "missing"],
        [".opt_state[0]", "float32 [4]", "float32 [5]"],
        [".step", "int32 []", "int16 []"],
        [".trainable['extra']", "missing", "float32 [2]"],
        [".trainable['w']", "float32 [4]", "float32 [5]"],
    ]
    assert "5 of its arrays differ" in str(error.value) and "--overwrite" in error.value.fix
    # What is no damage is never answered by falling back.
    with pytest.raises(InputError, match="5 of its arrays differ"):
        checkpoints.restore(other, fall_back=True)
    checkpoints.close()


MESHES = ({"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"tensor": 2})


def sharded(sizes: dict[str, int], value: Any) -> Any:
    """A state on a mesh: the matrix by rows and columns, its moments alike, the rest whole."""
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    tiles = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    whole = NamedSharding(mesh, PartitionSpec())
    places = TrainState(whole, {"w": tiles}, {"v": whole}, (tiles, ()), ())  # pyright: ignore
    return jax.tree.map(jax.device_put, value, places)


def test_what_one_mesh_saved_any_other_restores(tmp_path):
    matrix = jax.random.normal(jax.random.key(0), (16, 8))
    want = toy({"w": matrix}, matrix.astype(jnp.bfloat16))
    for saved_on in MESHES:
        checkpoints = Checkpoints(tmp_path / str(saved_on))
        checkpoints.save(1, sharded(saved_on, want))
        checkpoints.close()
        assert {k: v for k, v in checkpoints.record().mesh.items() if v > 1} == saved_on
        for restored_on in MESHES:
            like: Any = sharded(restored_on, jax.tree.map(jnp.zeros_like, want))
            restored: Any = checkpoints.restore(like)
            jax.tree.map(np.testing.assert_array_equal, restored, want)
            assert restored.trainable["w"].sharding == like.trainable["w"].sharding
            shapes: Any = jax.eval_shape(lambda: want)
            places = jax.tree.map(lambda x: x.sharding, like)
            again: Any = checkpoints.restore(shapes, places)
            assert again.trainable["w"].sharding == like.trainable["w"].sharding
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(want), want)


def test_what_a_killed_save_left_is_never_read_and_goes_with_the_next_save(saved):
    shutil.copytree(saved / "6", saved / "8.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest() == 6
    checkpoints.save(8, state(8.0))
    checkpoints.close()
    assert sorted(p.name for p in saved.iterdir()) == ["6", "8"]


def test_who_closes_waits_for_the_cleaning(tmp_path):
    """Where Python ended in the midst of it, Orbax printed a traceback."""
    for number in range(200):
        leftover = tmp_path / f"{number}.orbax-checkpoint-tmp" / "state"
        leftover.mkdir(parents=True)
        (leftover / "data").touch()
    Checkpoints(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_run_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.latest() is None
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoints.restore(state())
    checkpoints.close()


def test_steps_made_during_a_save_do_not_leak_into_it(tmp_path):
    """The step reuses the old state's memory while the save still runs in the background."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    current = step(state(size=2**21))
    want = jax.tree.map(lambda x: np.array(x, copy=True), current)
    checkpoints.save(1, current)
    for _ in range(30):
        current = step(current)
    jax.block_until_ready(current)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(want), want)
    checkpoints.close()
