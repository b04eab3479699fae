"""What other children of these tests run; each ends its process, with 0 where all is well."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import tests.faults.training  # noqa: F401  (settings and imports of a training process)
from janus_jax.hosts import HostsConfig, connect


def child(
    work: Callable[..., None], log: Path, hosts: HostsConfig, devices: int, *args: object
) -> None:
    """Calls `work(*args)` as one of several processes."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # gloo, JAX's transport between CPUs, talks on stdout, in the midst of other lines.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(output, 2)
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    status = 1
    try:
        connect(hosts)
        work(*args)
        status = 0
    except BaseException:
        traceback.print_exc()
    raise SystemExit(status)


def restore(run_dirs: list[Path]) -> None:
    """Restores the newest checkpoint of runs onto this mesh, which compares every checksum."""
    from train import rundir
    from train.checkpoints import Checkpoints
    from train.mesh import training_mesh
    from train.optim import make_optimizer
    from train.state import abstract_state, state_shardings
    from train.task import make_task

    for run_dir in run_dirs:
        config = rundir.read_config(run_dir)
        mesh = training_mesh(config.mesh)
        optimizer = make_optimizer(config.optimizer, config.steps)
        task = make_task(config, mesh, run_dir)
        like = abstract_state(task.abstract, config.trained_children(), optimizer)
        checkpoints = Checkpoints(run_dir / "checkpoints")
        shardings = state_shardings(like, mesh)
        state = checkpoints.restore(like, shardings)
        assert int(state.step) == config.steps
        assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, state, shardings))
        checkpoints.close()


def fall_back(directory: Path) -> None:
    """Restores where only the last process meets damage: all go on from the step before."""
    from janus_jax.hosts import is_first, wait
    from train.checkpoints import Checkpoints
    from train.guard import first_guard
    from train.state import TrainState

    mesh = Mesh(np.array(jax.devices()), ("fsdp",))
    last = jax.process_count() - 1

    def state(value: float) -> Any:
        def place(array: np.ndarray, *spec: str) -> jax.Array:
            where = NamedSharding(mesh, PartitionSpec(*spec))
            return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

        weights: Any = {"w": place(np.full((mesh.size, 2**16), value, np.float32), "fsdp")}
        guard = jax.tree.map(lambda x: place(np.asarray(x)), first_guard())
        return TrainState(place(np.int32(1)), weights, {}, (), guard)  # pyright: ignore

    checkpoints = Checkpoints(directory)
    for step in (1, 2):
        checkpoints.save(step, state(step))
    checkpoints.check_finished()
    if is_first():
        for path in (directory / f"2/state/ocdbt.process_{last}").rglob("*"):
            if path.is_file() and path.stat().st_size > 2**17:
                os.truncate(path, 2**17)
    wait("cut short")
    restored = checkpoints.restore(state(0), fall_back=True)
    for shard in restored.trainable["w"].addressable_shards:
        assert (np.asarray(shard.data) == 1).all()
    assert checkpoints.latest() == 1
    checkpoints.save(2, state(3))
    checkpoints.close()
    assert checkpoints.latest() == 2


def scatter(sizes: list[int]) -> None:
    """Compares psum_scatter with psum and a slice, for chunks of so many float32 numbers.

    gloo returned wrong sums for large chunks, silently (jax issue 40830).
    """
    devices = np.array(jax.devices())
    mesh = Mesh(devices, ("x",))
    where = NamedSharding(mesh, PartitionSpec("x"))
    for size in sizes:
        rng = np.random.default_rng(size)
        # Whole numbers, whose sums are exact in any order.
        values = rng.integers(-1000, 1000, (len(devices), len(devices) * size)).astype(np.float32)
        x = jax.make_array_from_callback(values.shape, where, lambda index, v=values: v[index])

        def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            scattered = lax.psum_scatter(x[0], "x", tiled=True)
            start = lax.axis_index("x") * scattered.size
            return scattered, lax.dynamic_slice(lax.psum(x[0], "x"), (start,), (scattered.size,))

        spec = PartitionSpec("x")
        spread = jax.shard_map(both, mesh=mesh, in_specs=spec, out_specs=spec)
        scattered, summed = jax.jit(spread)(x)
        want = values.sum(0)
        for name, found in (("psum_scatter", scattered), ("psum", summed)):
            for shard in found.addressable_shards:
                np.testing.assert_array_equal(shard.data, want[shard.index], f"{name}, {size}")
