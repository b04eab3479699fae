"""Disks that are full or read-only: found before the first step, or with the step before intact."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import InputError
from tests.faults.disks import small_disk
from tests.faults.jobs import Job, go_on_to_the_end, steps_saved
from train import checkpoints as module
from train.checkpoints import Checkpoints
from train.guard import first_guard
from train.state import TrainState

MEGABYTE = 2**20


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 16) as disk:
        yield disk


def state(value: float) -> Any:
    """Two megabytes."""
    weights: Any = {"w": jnp.full((MEGABYTE // 4,), value)}
    return TrainState(jnp.int32(1), weights, weights, (), first_guard())


def assert_newest(directory: Path, step: int) -> None:
    checkpoints = Checkpoints(directory)
    assert checkpoints.latest() == step
    restored: Any = checkpoints.restore(jax.eval_shape(lambda: state(0)))
    np.testing.assert_array_equal(restored.trainable["w"], np.full(MEGABYTE // 4, float(step)))
    checkpoints.close()


def test_a_full_disk_in_the_midst_of_a_save_leaves_the_step_before(disk, monkeypatch):
    """Somebody else fills the disk after the check: the write itself fails."""
    checkpoints = Checkpoints(disk.path / "checkpoints")
    checkpoints.save(2, state(2))
    checkpoints.check_finished()
    monkeypatch.setattr(module, "ROOM", 0)
    disk.fill(leave=MEGABYTE)
    with pytest.raises(InputError) as error:
        checkpoints.save(4, state(4))
        checkpoints.check_finished()
    assert disk.reason in str(error.value) and "that of step 2 is intact" in str(error.value)
    assert "--resume" in error.value.fix
    checkpoints.close()
    assert_newest(disk.path / "checkpoints", 2)
    # With room again the run goes on, and what the failed save left is cleaned up.
    disk.clear()
    checkpoints = Checkpoints(disk.path / "checkpoints")
    checkpoints.save(4, state(4))
    checkpoints.close()
    assert sorted(p.name for p in (disk.path / "checkpoints").iterdir()) == ["2", "4"]
    assert_newest(disk.path / "checkpoints", 4)


def test_a_disk_without_room_is_found_before_a_save(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(2, state(2))
    checkpoints.check_finished()
    needed = int(1.2 * (2 * MEGABYTE + 4 + 16))
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(module, "free_bytes", lambda path, free=free: free)
        if fits:
            checkpoints.check_room(state(4))
            continue
        with pytest.raises(InputError) as error:
            checkpoints.save(4, state(4))
        assert "takes up to 2.52 MB; its disk has 2.52 MB free" in str(error.value)
        assert "the checkpoint of step 2 is intact" in str(error.value)
    checkpoints.close()
    assert_newest(tmp_path / "checkpoints", 2)


def test_a_disk_that_would_be_full_before_the_end_is_found_at_the_start(tmp_path, monkeypatch):
    """Two steps are kept, and for a moment there are three: the new one, and both before it."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    each = int(1.2 * (2 * MEGABYTE + 4 + 16))
    cases = {
        0: [(1, 0, each), (2, 9, 2 * each + 9), (5, 9, 3 * each), (5, 2 * each, 4 * each)],
        1: [(5, 9, 2 * each), (5, 2 * each, 3 * each)],
        2: [(5, 9, each), (0, 9, 9)],
    }
    for step, wanted in cases.items():
        if step:
            checkpoints.save(step, state(step))
            checkpoints.check_finished()
        for saves, result, needed in wanted:
            with monkeypatch.context() as patch:
                patch.setattr(module, "free_bytes", lambda path, needed=needed: needed)
                checkpoints.check_room_for_all(state(0), saves, result)
                patch.setattr(module, "free_bytes", lambda path, needed=needed: needed - 1)
                with pytest.raises(InputError, match=r"the run still writes in .* takes up to"):
                    checkpoints.check_room_for_all(state(0), saves, result)
    checkpoints.close()


def test_read_only_disk_in_a_save_leaves_the_step_before(disk):
    checkpoints = Checkpoints(disk.path / "checkpoints")
    checkpoints.save(2, state(2))
    checkpoints.check_finished()
    disk.set_writable(False)
    with pytest.raises(InputError, match=r"could not be written .*that of step 2 is intact"):
        checkpoints.save(4, state(4))
        checkpoints.check_finished()
    disk.set_writable(True)
    checkpoints.close()
    assert_newest(disk.path / "checkpoints", 2)


def test_read_only_run_directory_is_found_before_the_first_step(disk, tmp_path):
    disk.set_writable(False)
    at = "" if disk.mounted else "bound by permissions"
    line = Job(disk.path / "run", at=at, notes=tmp_path).refused()
    assert line.startswith(f"--run-dir {disk.path / 'run'} cannot be written")
    assert ("Read-only file system" if disk.mounted else "Permission denied") in line


def test_disk_too_small_for_a_checkpoint_is_found_before_the_first_step(disk, tmp_path):
    if disk.mounted:
        disk.fill(leave=MEGABYTE // 8)
    # No other directory has a size of its own, so the run is told one.
    at = "" if disk.mounted else "small disk"
    line = Job(disk.path / "run", at=at, notes=tmp_path).refused()
    assert "checkpoint" in line and str(disk.path / "run" / "checkpoints") in line
    assert re.search(r"takes up to [\d.]+ MB; its disk has 0\.1\d MB free", line), line
    assert not (disk.path / "run" / "metrics.jsonl").exists()


def test_disk_full_in_the_midst_of_a_run_and_gone_on_with(disk, whole, tmp_path):
    run_dir = disk.path / "run"
    job = Job(run_dir, "--checkpoint-every", "2", at="fifth data wait", notes=tmp_path)
    job.come_there()
    while steps_saved(run_dir) != [2, 4]:
        assert job.running(), job.said()
    disk.fill(process=job.pid)
    job.let_go()
    line = job.refused()
    assert str(run_dir) in line and disk.reason in line and "--resume" in line
    assert steps_saved(run_dir) == [2, 4]
    disk.clear()
    go_on_to_the_end(run_dir, whole, "--checkpoint-every", "2", notes=tmp_path)
