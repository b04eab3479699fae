"""The training loop, from an empty directory to a saved model.

A run directory holds `config.json` (the preset, and what it left open and the run decided),
`metrics.jsonl`, `checkpoints/`, `previews/`, `goodput.json`, perhaps `bad_steps.jsonl` and what
else watches the run, and at the end `params/` (the parts that this run and its ancestors trained)
and, when all parts are there, `model/`, which `janus-jax generate --model` and `chat --model` read.
`done` is written last.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from janus_jax.errors import InputError
from janus_jax.functional import abstract, count_params, flat_params
from janus_jax.hosts import is_first, team, wait
from janus_jax.params_io import save_params
from janus_jax.streaming import LazyTensor
from train import rundir
from train.checkpoints import Checkpoints
from train.config import PARTS, TrainConfig
from train.data.prefetch import prefetch
from train.evaluation import Evaluate, make_evaluation
from train.export import export_model
from train.init import initial_parts
from train.mesh import training_mesh
from train.optim import make_optimizer
from train.own_data import data_digests, resolve
from train.plan.chips import compiler_options
from train.report import print_heldout
from train.run import Run
from train.state import (
    TrainState,
    abstract_state,
    create_params,
    first_state,
    state_shardings,
)
from train.step import make_step
from train.stopping import EXIT_PREEMPTED, Stop, Stopped, stop_on_signal
from train.task import make_task
from train.watch.goodput import Goodput
from train.watch.watch import Watch


def run(
    config: TrainConfig,
    run_dir: Path,
    *,
    resume: bool,
    overwrite: bool,
    fall_back: bool = False,
) -> int:
    """Trains one preset.

    Args:
      config: the resolved preset.
      run_dir: where the run lives.
      resume: go on where a run with the same config stopped (a finished run is left alone).
      overwrite: delete what is there.
      fall_back: go on from the checkpoint before the newest where that is damaged.

    Returns:
      The exit status: 0 done, 75 stopped by SIGTERM or Ctrl-C with its state saved.

    Raises:
      InputError: the directory holds a run and neither flag is given, or one of another config, or
        is in use or too small; or an initial part is missing, or the mesh does not fit, or a
        checkpoint is damaged.
      RunFailed: too many bad steps in a row.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other", "one of them")
    if fall_back and not resume:
        raise InputError("--fall-back goes with --resume", fix="add --resume")
    # What comes before the first step can take longer than a scheduler waits, too.
    with stop_on_signal() as stop, rundir.locked(run_dir) if is_first() else nullcontext():
        if is_first():
            rundir.prepare(config, run_dir, resume=resume, overwrite=overwrite)
        wait("prepared")
        rundir.check_shared(config, run_dir)
        if rundir.is_finished(run_dir):
            say(f"{config.name}: already done, in {run_dir}")
            return 0
        config = resolve(config, run_dir)
        wait("resolved")  # all have read what the first one now writes
        if is_first():
            rundir.settle(run_dir, config, data_digests(config))
        goodput = Goodput(run_dir / "goodput.json" if is_first() else None)
        with rundir.writable(run_dir):
            # Leaving the block waits for the last save.
            with closing(Checkpoints(run_dir / "checkpoints")) as checkpoints:
                this, state = start(config, run_dir, checkpoints, fall_back=fall_back)
                goodput.resumed(int(state.step))
                state, ended = train(this, state, checkpoints, stop, goodput)
            if not ended:
                say(f"{config.name}: stopped and saved at step {int(state.step)}")
                return EXIT_PREEMPTED
            finish(this, state)
            # Too late to stop this run, in time for those that a recipe makes after it.
            return EXIT_PREEMPTED if stop.agreed() else 0


def start(
    config: TrainConfig, run_dir: Path, checkpoints: Checkpoints, *, fall_back: bool
) -> tuple[Run, TrainState]:
    """The state that training goes on from: the newest checkpoint, or a fresh one.

    Raises:
      InputError: an initial part is missing, the mesh does not fit, or the checkpoint does not, or
        the disk has no room for the next one.
    """
    mesh = training_mesh(config.mesh)
    task = make_task(config, mesh, run_dir)
    optimizer = make_optimizer(config.optimizer, config.steps)
    parts = config.trained_children()
    like = abstract_state(task.abstract, parts, optimizer)
    shardings = state_shardings(like, mesh)
    latest = checkpoints.latest()
    saves = math.ceil((config.steps - (latest or 0)) / config.checkpoint_every)
    # At most all parameters in float32, and the model directory in bfloat16.
    result = (4 + 2) * count_params(abstract(task.origin.model)[1])
    checkpoints.check_room_for_all(like, saves, result)
    # Before the weights are made, so that a missing run is reported at once.
    wanted = set(config.initial_runs()) if latest is None else {"vq"}
    given = initial_parts(config, run_dir, task.origin.model, mesh, wanted)
    tokenizer = given.pop("vq", None) if "vq" not in task.abstract else None
    this = Run(config, run_dir, mesh, task, tokenizer, shardings)
    if latest is None:
        params = create_params(
            task.init, config.seed, task.from_layers(nnx.State(given)), shardings.params
        )
        return this, first_state(params, parts, optimizer, shardings)
    state = checkpoints.restore(like, shardings, fall_back=fall_back)
    found = checkpoints.record(int(state.step))
    say(f"{config.name}: resumed from {found.summary()}")
    return this, state


def train(
    run: Run, state: TrainState, checkpoints: Checkpoints, stop: Stop, goodput: Goodput
) -> tuple[TrainState, bool]:
    """Steps until the last one or until `stop` is requested.

    Returns:
      The state, which has been saved, and whether nothing is left to do.
    """
    config, task = run.config, run.task
    done = saved = int(state.step)
    feed = task.feed(run.tokenizer, "train")
    step_fn = make_step(
        task.graphdef,
        task.loss,
        make_optimizer(config.optimizer, config.steps),
        config.seed,
        shardings=run.shardings,
        accumulate=config.accumulate,
        compute_dtype=config.compute_dtype,
        guard=config.guard,
        compiler_options=compiler_options(run.mesh.devices.flat[0].device_kind),
    )
    every = config.preview_every
    evaluate = make_evaluation(run) if every else None
    # A signal may have cut the evaluation of the saved step short. And what training changes is
    # told by what was there before it.
    due = bool(every) and (checkpoints.record(done).evaluation_due if done else bool(config.data))
    batches: Any = prefetch(
        feed.read,
        done,
        config.steps,
        source=feed.checked,
        threads=config.data_workers if feed.checked else 1,
        processes=config.data_processes if feed.checked else 0,
    )
    watch = Watch(
        run.directory,
        goodput,
        name=config.name,
        settings=dataclasses.asdict(config),
        start=done,
        keep_evaluation=not due,
        steps=config.steps,
        ids=feed.ids,
        guard=config.guard,
        watch=config.watch,
        profile=config.profile,
    )

    # With rows to fill, the data says how many there are.
    samples = config.batch_size or len(feed.ids(0))

    def is_due_still(evaluate: Evaluate) -> bool:
        """Evaluates, and says whether a signal has cut that short."""
        found = None
        with watch.evaluation():
            with suppress(Stopped), stop.interruptible(together=True):
                found = evaluate(done, state)
            if found is not None:
                watch.evaluated(done, found)
        return found is None

    def save() -> None:
        with watch.save(done) as metrics:
            checkpoints.save(
                done,
                state,
                metrics=metrics,
                sampler={"next_sample": done * samples, "seed": config.seed},
                config=dataclasses.asdict(config),
                evaluation_due=due,
            )

    with closing(watch), closing(batches):
        if evaluate and due:
            due = is_due_still(evaluate)
        while done < config.steps:
            with suppress(Stopped), stop.interruptible(), watch.waiting_for_data():
                read = next(batches)
            if stop.agreed():
                break
            with watch.step(done + 1), jax.set_mesh(run.mesh):
                # The old state's memory is gone after this line; nothing else may hold its arrays.
                state, values = step_fn(state, feed.place(read))
            done += 1
            stop.has_unsaved_steps()
            last = done == config.steps
            watch.stepped(done, values, log=done % config.log_every == 0 or last)
            due = bool(evaluate) and (done % every == 0 or last) and is_due_still(evaluate)
            if done % config.checkpoint_every == 0 or last:
                save()
                saved = done
        if saved < done:
            save()
    return state, done == config.steps and not due


def finish(run: Run, state: TrainState) -> None:
    """Writes the run's result: its parts, and a model directory when no part is missing.

    `done` is written last.

    Raises:
      InputError: something cannot be written.
    """
    config, run_dir = run.config, run.directory
    trained = {*config.trainable, *config.initial_runs()}
    whole = run.whole_params(state, later if team() is None else gathered)
    params = nnx.State({part: whole[part] for part in PARTS if part in trained})
    if is_first():
        save_params(run_dir / "params", params)
        if trained == set(PARTS):
            export_model(params, run.task.origin, run_dir / "model", config)
            print_heldout(run_dir)
        rundir.write_json(
            run_dir / "done",
            {"parts": list(params), "parameters": len(flat_params(params)), "steps": config.steps},
        )
    wait("finished")


def later(make: Callable[[], jax.Array]) -> LazyTensor:
    """A parameter that is made when it is written."""
    like = jax.eval_shape(make)
    return LazyTensor(like.shape, like.dtype, lambda: np.asarray(make()))


def gathered(make: Callable[[], jax.Array]) -> np.ndarray | None:
    """A parameter where it is written: on process 0 alone, in its host's memory."""
    # One at a time is whole on every device.
    found = multihost_utils.process_allgather(make(), tiled=True)
    return found if is_first() else None


def say(line: str) -> None:
    """Prints a line for people, once for all processes."""
    if is_first():
        print(line, file=sys.stderr)
