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
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from janus_jax.errors import InputError
from janus_jax.functional import abstract, flat_params
from janus_jax.locate import is_model
from janus_jax.params_io import restore_params, save_params
from train import rundir
from train.checkpoints import Checkpoints
from train.config import PARTS, TrainConfig
from train.data.pipeline import Batches, stream
from train.export import export_model
from train.metrics import MetricsLog
from train.optim import make_optimizer
from train.previews import save_preview
from train.state import TrainState, abstract_state, create_state
from train.step import make_step
from train.stopping import EXIT_PREEMPTED, Stop, stop_on_signal
from train.task import Task, make_task


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
        is in use; or an initial part is missing.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other", "one of them")
    with rundir.locked(run_dir):
        rundir.prepare(config, run_dir, resume=resume, overwrite=overwrite)
        if rundir.is_finished(run_dir):
            print(f"{config.name}: already done, in {run_dir}", file=sys.stderr)
            return 0
        task = make_task(config)
        with stop_on_signal() as stop:
            # Leaving the block waits for the last save.
            with closing(Checkpoints(run_dir / "checkpoints")) as checkpoints:
                graphdef, state = start(config, task, checkpoints, run_dir)
                state = train(config, task, graphdef, state, checkpoints, run_dir, stop)
            done = int(state.step)
            if done < config.steps:
                print(f"{config.name}: stopped and saved at step {done}", file=sys.stderr)
                return EXIT_PREEMPTED
            finish(state, task, config, run_dir)
            # Too late to stop this run, in time for those that a recipe makes after it.
            return EXIT_PREEMPTED if stop.requested else 0


def start(
    config: TrainConfig, task: Task, checkpoints: Checkpoints, run_dir: Path
) -> tuple[Any, TrainState]:
    """The state that training goes on from: the newest checkpoint, or a fresh one.

    Returns:
      The module's static graph and the state.

    Raises:
      InputError: an initial part is missing, or the checkpoint does not fit.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    parts = trained_children(config)
    if checkpoints.latest() is None:
        # Before the weights are made, so that a missing run is reported at once.
        loaded = initial_parts(task, config, run_dir)
        graphdef, state = create_state(task.build, parts, optimizer, config.seed)
        for part, values in loaded.items():
            nnx.update((state.trainable if part in parts else state.frozen)[part], values)
        return graphdef, state
    graphdef, like = abstract_state(task.build, parts, optimizer)
    state = checkpoints.restore(like)
    print(f"{config.name}: resumed at step {int(state.step)}", file=sys.stderr)
    return graphdef, state


def train(
    config: TrainConfig,
    task: Task,
    graphdef: Any,
    state: TrainState,
    checkpoints: Checkpoints,
    run_dir: Path,
    stop: Stop,
) -> TrainState:
    """Steps until the last one or until `stop` is requested; what it returns has been saved."""
    first = int(state.step)
    batches = task.batches(nnx.merge(graphdef, state.params), "train")
    optimizer = make_optimizer(config.optimizer, config.steps)
    step_fn = make_step(graphdef, task.loss, optimizer, config.seed)
    preview = None
    if config.preview_every:
        preview = make_preview(task, graphdef, state, run_dir)
    metrics_path = run_dir / "metrics.jsonl"
    with closing(
        MetricsLog(metrics_path, steps=config.steps, start=first, title=config.name)
    ) as log:
        for done, batch in enumerate(stream(batches, first, config.steps), first + 1):
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


def make_preview(
    task: Task, graphdef: Any, state: TrainState, run_dir: Path
) -> Callable[[int, TrainState], dict[str, float]]:
    """What is done every `preview_every` steps: sample pictures, and the loss on held-out data.

    Args:
      task: the task.
      graphdef: static graph of the module.
      state: the initial state (held-out pictures are encoded once, by its tokenizer, too).
      run_dir: pictures go to its `previews/`.

    Returns:
      `preview(step, state) -> record` for the metrics file.
    """
    heldout: dict[str, Batches] = task.batches(nnx.merge(graphdef, state.params), "heldout")
    batch = {kind: batches(0) for kind, batches in heldout.items()}

    @jax.jit
    def measure(params: nnx.State, batch: Any) -> dict[str, jax.Array]:
        return task.loss(nnx.merge(graphdef, params), batch, jax.random.key(0))[1]

    def preview(step: int, state: TrainState) -> dict[str, float]:
        values = jax.device_get(measure(state.params, batch))
        module = nnx.merge(graphdef, state.params)
        save_preview(module, task, run_dir / "previews" / f"{step:07d}.png")
        return {"step": step} | {f"heldout_{k}": float(v) for k, v in values.items()}

    return preview


def trained_children(config: TrainConfig) -> tuple[str, ...]:
    """The children of the task's module that train.

    They are the preset's parts, and the text tower that only the contrastive objective has.
    """
    return (*config.trainable, "text_tower")


def initial_parts(task: Task, config: TrainConfig, run_dir: Path) -> dict[str, nnx.State]:
    """Parts that come from earlier runs, or from model directories.

    Args:
      task: the task.
      config: the preset; its `init` says `part=run`.
      run_dir: this run's directory; runs are looked for beside it.

    Returns:
      For each part its parameters.

    Raises:
      InputError: a run without a result, or without that part.
    """
    # One restore for each run, whatever the number of its parts used.
    sources: dict[str, list[str]] = {}
    for part, name in config.initial_runs().items():
        sources.setdefault(name, []).append(part)
    loaded: dict[str, nnx.State] = {}
    for name, parts in sources.items():
        directory = run_dir.parent / name
        have: list[str]
        if is_model(directory):
            have = list(PARTS)
        elif rundir.is_finished(directory):
            have = rundir.read_json(directory / "done").get("parts", [])
        else:
            raise InputError(
                f"--init {parts[0]}={name}: {directory} holds no finished run and no model",
                fix=f"train {name} first, or name another run or a model directory",
            )
        missing = sorted(set(parts) - set(have))
        if missing:
            raise InputError(f"--init {missing[0]}={name}: that run has only {', '.join(have)}")
        found = restore_params(directory / "params", abstract_parts(task, have))
        loaded |= {part: found[part] for part in parts}
    return loaded


def abstract_parts(task: Task, parts: list[str]) -> nnx.State:
    """Shapes of some children of the model."""
    whole = abstract(task.config)[1]
    return nnx.State({part: whole[part] for part in parts})


def finish(state: TrainState, task: Task, config: TrainConfig, run_dir: Path) -> None:
    """Writes the run's result: its parts, and a model directory when no part is missing.

    Args:
      state: the last state.
      task: the task.
      config: the preset.
      run_dir: gets `params/`, perhaps `model/`, and `done` last.

    Raises:
      InputError: something cannot be written.
    """
    trained = {*config.trainable, *config.initial_runs()}
    params = nnx.State({part: state.params[part] for part in PARTS if part in trained})
    save_params(run_dir / "params", params)
    if trained == set(PARTS):
        export_model(params, task.config, run_dir / "model", run=config.name)
    rundir.write_json(
        run_dir / "done",
        {"parts": list(params), "parameters": len(flat_params(params)), "steps": config.steps},
    )
