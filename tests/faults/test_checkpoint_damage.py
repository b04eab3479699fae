"""Damaged checkpoints: every file of a step cut short, flipped, or gone; never wrong weights."""

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from janus_jax.errors import InputError, RunFailed
from train.checkpoints import Checkpoints
from train.guard import first_guard
from train.state import TrainState

KEPT, NEWEST = 4, 6


def state(step: int) -> Any:
    """Arrays of all sizes that are stored differently: in the index, and in files of their own."""
    key = jax.random.key(step)
    weights: Any = {"w": jax.random.normal(key, (96, 64)), "b": jnp.ones(3, jnp.bfloat16) * step}
    frozen: Any = {"v": jnp.arange(300.0)}
    moments = jax.random.normal(key, (500,))
    return TrainState(jnp.int32(step), weights, frozen, (moments, ()), first_guard())


def same(a: Any, b: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def restore(directory: Path, *, fall_back: bool = False) -> Any:
    checkpoints = Checkpoints(directory)
    try:
        return checkpoints.restore(jax.eval_shape(lambda: state(0)), fall_back=fall_back)
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Two whole steps, not to be changed."""
    directory = tmp_path_factory.mktemp("sound")
    checkpoints = Checkpoints(directory)
    for step in (KEPT, NEWEST):
        checkpoints.save(step, state(step), metrics={"loss": 1.0})
    checkpoints.close()
    return directory


@pytest.fixture
def saved(sound, tmp_path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(sound, tmp_path / "checkpoints")


def files(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / str(NEWEST)).rglob("*") if path.is_file())


def truncated(path: Path, moments: random.Random) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: moments.randrange(len(raw))])


def flipped(path: Path, moments: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[moments.randrange(len(raw))] ^= 1 << moments.randrange(8)
    path.write_bytes(raw)


def gone(path: Path, moments: random.Random) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "times"),
    [(truncated, 3), (flipped, 8), (gone, 1)],
    ids=["truncated", "bit-flipped", "missing"],
)
def test_a_truncated_or_bit_flipped_checkpoint_is_named_or_still_whole(damage, times, saved, sound):
    """Some bytes are not needed (markers, copies of the index); without them all is read right."""
    moments, outcomes = random.Random(0), Counter()
    want = state(NEWEST)
    for relative in [path.relative_to(sound) for path in files(sound)] * times:
        damage(saved / relative, moments)
        try:
            restored = restore(saved)
        except InputError as error:
            named = str(saved / str(NEWEST)) if damage is gone else str(saved / relative)
            assert named in str(error) and "--fall-back" in error.fix, (relative, str(error))
            outcomes["named"] += 1
        else:
            # A step without its marker is none, and the step before is the newest.
            assert same(restored, want) or (damage is gone and same(restored, state(KEPT)))
            outcomes["whole"] += 1
        shutil.rmtree(saved)
        shutil.copytree(sound, saved)
    assert min(outcomes["named"], outcomes["whole"]) >= times


def data_file(saved: Path) -> Path:
    """The largest file, of the weights."""
    return max(files(saved), key=lambda path: path.stat().st_size)


def test_falling_back_from_a_damaged_checkpoint_only_when_asked(saved, capsys):
    flipped(data_file(saved), random.Random(0))
    count = len(list((saved / str(NEWEST)).rglob("*")))
    with pytest.raises(InputError, match="does not match its checksum"):
        restore(saved)
    assert (saved / str(NEWEST)).exists()
    assert same(restore(saved, fall_back=True), state(KEPT))
    assert "falling back" in capsys.readouterr().err
    # The damaged step has another name, with all its bytes, so that the run can save it again.
    (aside,) = saved.glob(f"damaged-{NEWEST}-*")
    assert len(list(aside.rglob("*"))) == count
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest() == KEPT
    checkpoints.save(NEWEST, state(NEWEST))
    checkpoints.close()
    assert same(restore(saved), state(NEWEST))


def test_nothing_is_deleted_when_every_checkpoint_is_damaged(saved):
    flipped(data_file(saved), random.Random(0))
    (saved / str(KEPT) / "record" / "metadata").write_text("{}")
    with pytest.raises(InputError, match=rf"/{KEPT}/record/metadata"):
        restore(saved, fall_back=True)
    assert sorted(path.name for path in saved.iterdir()) == [str(KEPT), str(NEWEST)]


def test_storage_that_refuses_is_no_damage(saved):
    """Nothing is passed over for it, and the same step is read once the storage is mended."""
    for path in (data_file(saved), saved / str(NEWEST) / "record" / "metadata"):
        kept = path.rename(saved / "kept")
        path.symlink_to(path.name)  # "Too many levels of symbolic links"
        with pytest.raises(RunFailed, match=f"{NEWEST} cannot be read now .*levels of symbolic"):
            restore(saved, fall_back=True)
        kept.replace(path)
    assert same(restore(saved, fall_back=True), state(NEWEST))
    assert sorted(path.name for path in saved.iterdir()) == [str(KEPT), str(NEWEST)]


def test_a_device_without_room_is_no_damage(saved, monkeypatch):
    def full(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.PyTreeCheckpointHandler, "restore", full)
        with pytest.raises(RunFailed, match=r"cannot be read now .*Out of memory"):
            restore(saved, fall_back=True)
    assert same(restore(saved), state(NEWEST))
