"""Checkpoints of a toy state: how many, of what, and what damage says."""

import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import InputError
from train.checkpoints import Checkpoints
from train.state import TrainState


def state(value: float = 0.0, size: int = 4, **extra) -> Any:
    """A state with plain dictionaries in the place of module states."""
    return toy({"w": jnp.full((size,), value), **extra}, jnp.zeros((size,)))


def toy(trainable: Any, moments: Any) -> Any:
    frozen: Any = {"v": jnp.arange(3.0)}
    return TrainState(jnp.asarray(7, jnp.int32), trainable, frozen, (moments, ()))


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4, 6):
        checkpoints.save(step, state(step))
    checkpoints.close()
    return tmp_path


def test_the_two_newest_are_kept_and_the_newest_is_read(saved):
    assert sorted(int(p.name) for p in saved.iterdir()) == [4, 6]
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest() == 6
    restored = checkpoints.restore(jax.eval_shape(lambda: state()))
    jax.tree.map(np.testing.assert_array_equal, restored, state(6))
    assert jax.tree.structure(restored) == jax.tree.structure(state())
    checkpoints.close()


def test_another_structure_is_refused_with_every_difference(saved):
    checkpoints = Checkpoints(saved)
    with pytest.raises(InputError) as error:
        checkpoints.restore(state(size=5, extra=jnp.zeros(2)))
    for part in (
        ".trainable['w'] (4,) instead of (5,)",
        ".trainable['extra'] missing instead of (2,)",
        ".opt_state[0] (4,) instead of (5,)",
        "step 6",
        "--overwrite",
    ):
        assert part in str(error.value)
    checkpoints.close()


def test_too_much_is_refused_as_well(saved):
    checkpoints = Checkpoints(saved)
    with pytest.raises(InputError, match=r"\.trainable\['w'\] unexpected"):
        checkpoints.restore(toy({}, jnp.zeros(4)))
    checkpoints.close()


def test_a_damaged_step_is_named_with_the_way_out(saved):
    for path in (saved / "6" / "default").rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    checkpoints = Checkpoints(saved)
    with pytest.raises(InputError) as error:
        checkpoints.restore(state())
    assert str(saved / "6") in str(error.value) and "delete" in error.value.fix
    checkpoints.close()
    shutil.rmtree(saved / "6")
    checkpoints = Checkpoints(saved)
    restored: Any = checkpoints.restore(state())
    assert restored.trainable["w"][0] == 4
    checkpoints.close()


def test_what_a_killed_save_left_is_never_read_and_goes_with_the_next_save(saved):
    shutil.copytree(saved / "6", saved / "8.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest() == 6
    checkpoints.save(8, state(8))
    checkpoints.close()
    assert sorted(p.name for p in saved.iterdir()) == ["6", "8"]


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
