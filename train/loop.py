"""The training loop, from an empty directory to a saved model.

A run directory holds `config.json` (the resolved preset), `metrics.jsonl`, `checkpoints/`,
`previews/`, and at the end `params/` (the parts that this run and its ancestors trained) and, when
all parts are there, `model/`, which `janus-jax generate --model` and `chat --model` read. `done` is
written last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from janus_jax.errors import InputError
from janus_jax.functional import flat_params
from janus_jax.params_io import save_params
from train import rundir
from train.checkpoints import Checkpoints
from train.config import PARTS, TrainConfig
from train.data.pipeline import stream
from train.export import export_model
from train.init import initial_parts
from train.mesh import training_mesh
from train.metrics import MetricsLog
from train.optim import make_optimizer
from train.previews import save_preview
from train.state import (
    TrainState,
    abstract_state,
    create_params,
    first_state,
    state_shardings,
)
from train.step import make_step, quotients
from train.stopping import EXIT_PREEMPTED, Stop, stop_on_signal
from train.task import Task, make_task


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step of a run to its last.

    Attributes:
      config: the resolved preset.
      directory: the run directory.
      mesh: the devices.
      task: what is done.
      tokenizer: parameters of the image tokenizer, where the run has one: it is never trained by a
        stage, so it is no part of the state.
      shardings: of the state.
    """

    config: TrainConfig
    directory: Path
    mesh: Mesh
    task: Task
    tokenizer: nnx.State | None
    shardings: TrainState


def run(config: TrainConfig, run_dir: Path, *, resume: bool, overwrite: bool) -> int:
    """Trains one preset.

    Args:
      config: the resolved preset.
      run_dir: where the run lives.
      resume: go on where a run with the same config stopped (a finished run is left alone).
      overwrite: delete what is there.

    Returns:
      The exit status: 0 done, 75 stopped by SIGTERM or Ctrl-C with its state saved.

    Raises:
      InputError: the directory holds a run and neither flag is given, or one of another config, or
        is in use; or an initial part is missing, or the mesh does not fit.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other", "one of them")
    with rundir.locked(run_dir):
        rundir.prepare(config, run_dir, resume=resume, overwrite=overwrite)
        if rundir.is_finished(run_dir):
            print(f"{config.name}: already done, in {run_dir}", file=sys.stderr)
            return 0
        with stop_on_signal() as stop:
            # Leaving the block waits for the last save.
            with closing(Checkpoints(run_dir / "checkpoints")) as checkpoints:
                this, state = start(config, run_dir, checkpoints)
                state = train(this, state, checkpoints, stop)
            done = int(state.step)
            if done < config.steps:
                print(f"{config.name}: stopped and saved at step {done}", file=sys.stderr)
                return EXIT_PREEMPTED
            finish(this, state)
            # Too late to stop this run, in time for those that a recipe makes after it.
            return EXIT_PREEMPTED if stop.requested else 0


def start(config: TrainConfig, run_dir: Path, checkpoints: Checkpoints) -> tuple[Run, TrainState]:
    """The state that training goes on from: the newest checkpoint, or a fresh one.

    Raises:
      InputError: an initial part is missing, the mesh does not fit, or the checkpoint does not.
    """
    mesh = training_mesh(config.mesh)
    task = make_task(config, mesh)
    optimizer = make_optimizer(config.optimizer, config.steps)
    parts = trained_children(config)
    like = abstract_state(task.abstract, parts, optimizer)
    shardings = state_shardings(like, mesh)
    latest = checkpoints.latest()
    # Before the weights are made, so that a missing run is reported at once.
    wanted = set(config.initial_runs()) if latest is None else {"vq"}
    given = initial_parts(config, run_dir, task.config, mesh, wanted)
    tokenizer = given.pop("vq", None) if "vq" not in task.abstract else None
    this = Run(config, run_dir, mesh, task, tokenizer, shardings)
    if latest is None:
        params = create_params(
            task.init, config.seed, task.from_layers(nnx.State(given)), shardings.params
        )
        return this, first_state(params, parts, optimizer, shardings)
    state = checkpoints.restore(like, shardings)
    print(f"{config.name}: resumed at step {int(state.step)}", file=sys.stderr)
    return this, state


def train(run: Run, state: TrainState, checkpoints: Checkpoints, stop: Stop) -> TrainState:
    """Steps until the last one or until `stop` is requested; what it returns has been saved."""
    config, task, first = run.config, run.task, int(state.step)
    feed = task.feed(run.tokenizer, "train")
    step_fn = make_step(
        task.graphdef,
        task.loss,
        make_optimizer(config.optimizer, config.steps),
        config.seed,
        shardings=run.shardings,
        accumulate=config.accumulate,
        compute_dtype=config.compute_dtype,
    )
    preview = make_preview(run) if config.preview_every else None
    metrics_path = run.directory / "metrics.jsonl"
    with closing(
        MetricsLog(metrics_path, steps=config.steps, start=first, title=config.name)
    ) as log:
        for done, read in enumerate(stream(feed.read, first, config.steps), first + 1):
            batch = feed.place(read)
            with jax.set_mesh(run.mesh):
                # The old state's memory is gone after this line; nothing else may hold its arrays.
                state, values = step_fn(state, batch)
            stop.has_unsaved_steps()
            last = done == config.steps
            if done % config.log_every == 0 or last:
                log.add(done, values)
            if preview and (done % config.preview_every == 0 or last):
                log.flush()
                log.write(preview(done, state))
            # Read once: a signal that comes between two looks would return without saving.
            stopping = stop.requested
            if done % config.checkpoint_every == 0 or last or stopping:
                # A checkpoint says that everything up to its step has been written.
                log.flush()
                checkpoints.save(done, state)
            if stopping:
                break
    return state


def make_preview(run: Run) -> Callable[[int, TrainState], dict[str, float]]:
    """What is done every `preview_every` steps: sample pictures, and the loss on held-out data.

    Returns:
      `preview(step, state) -> record` for the metrics file.
    """
    task = run.task
    feed = task.feed(run.tokenizer, "heldout")
    batch = feed.place(feed.read(0))

    @jax.jit
    def measure(params: nnx.State, batch: Any) -> dict[str, jax.Array]:
        return quotients(task.loss(nnx.merge(task.graphdef, params), batch, jax.random.key(0)))

    def preview(step: int, state: TrainState) -> dict[str, float]:
        with jax.set_mesh(run.mesh):
            values = jax.device_get(measure(state.params, batch))
        path = run.directory / "previews" / f"{step:07d}.png"
        save_preview(whole_params(run, state), task.config, path)
        losses = {k: float(v) for k, v in values.items() if k.endswith("_loss")}
        return {"step": step} | {f"heldout_{k}": v for k, v in losses.items()}

    return preview


def whole_params(run: Run, state: TrainState) -> nnx.State:
    """The parameters of a state as they are on disk, the tokenizer's among them."""
    params = run.task.to_layers(state.params)
    if run.tokenizer is None:
        return params
    tokenizer = jax.device_put(run.tokenizer, run.shardings.step)
    return nnx.State({**params, "vq": tokenizer})


def trained_children(config: TrainConfig) -> tuple[str, ...]:
    """The children of the task's module that train.

    They are the preset's parts, and the text tower that only the contrastive objective has.
    """
    return (*config.trainable, "text_tower")


def finish(run: Run, state: TrainState) -> None:
    """Writes the run's result: its parts, and a model directory when no part is missing.

    `done` is written last.

    Raises:
      InputError: something cannot be written.
    """
    config, run_dir = run.config, run.directory
    trained, whole = {*config.trainable, *config.initial_runs()}, whole_params(run, state)
    params = nnx.State({part: whole[part] for part in PARTS if part in trained})
    save_params(run_dir / "params", params)
    if trained == set(PARTS):
        export_model(params, run.task.config, run_dir / "model", run=config.name)
    rundir.write_json(
        run_dir / "done",
        {"parts": list(params), "parameters": len(flat_params(params)), "steps": config.steps},
    )
