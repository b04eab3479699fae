"""The training loop, from an empty directory to a saved model.

A run directory holds `config.json` (the resolved preset), `metrics.jsonl`, `checkpoints/`,
`previews/`, and at the end `params/` (the parts that this run and its ancestors trained) and, when
all parts are there, `model/`, which `janus-jax generate --model` and `chat --model` read.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from janus_jax.checkpoint import restore_params, save_params
from janus_jax.errors import InputError
from janus_jax.functional import abstract, flat_params
from train.checkpoints import Checkpoints
from train.config import PARTS, TrainConfig
from train.data.pipeline import stream
from train.export import export_model
from train.metrics import MetricsLog
from train.optim import make_optimizer
from train.previews import save_preview
from train.state import TrainState, create_state
from train.step import make_step
from train.task import Task, make_task

EXIT_PREEMPTED = 75


def run(config: TrainConfig, run_dir: Path, *, resume: bool, overwrite: bool) -> int:
    """Trains one preset.

    Args:
      config: the resolved preset.
      run_dir: where the run lives.
      resume: go on where a run with the same config stopped (a finished run is left alone).
      overwrite: delete what is there.

    Returns:
      The exit status: 0 done, 75 stopped by SIGTERM with its state saved.

    Raises:
      InputError: the directory holds a run and neither flag is given, or one of another config;
        or an initial part is missing.
    """
    prepare_run_dir(config, run_dir, resume=resume, overwrite=overwrite)
    if is_finished(run_dir):
        print(f"{config.name}: already done, in {run_dir}", file=sys.stderr)
        return 0

    task = make_task(config)
    optimizer = make_optimizer(config.optimizer, config.steps)
    graphdef, state = create_state(task.build, trained_children(config), optimizer, config.seed)
    state, known = initialise(state, task, config, run_dir)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    if checkpoints.latest() is not None:
        state = checkpoints.restore(state)
        print(f"{config.name}: resumed at step {int(state.step)}", file=sys.stderr)

    model = nnx.merge(graphdef, state.trainable, state.frozen)
    start, batches = int(state.step), task.batches(model, "train")
    heldout = {kind: batch(0) for kind, batch in task.batches(model, "heldout").items()}
    step_fn = make_step(graphdef, task.loss, optimizer, config.seed)
    heldout_loss = jax.jit(
        lambda state: task.loss(
            nnx.merge(graphdef, state.trainable, state.frozen), heldout, jax.random.key(0)
        )[1]
    )
    log = MetricsLog(run_dir / "metrics.jsonl", steps=config.steps, start=start, title=config.name)
    with stop_requested() as stop:
        for step, batch in enumerate(stream(batches, start, config.steps), start):
            state, metrics = step_fn(state, batch)
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                log.add(done, metrics)
            if done % config.checkpoint_every == 0 or done == config.steps or stop.is_set():
                checkpoints.save(done, state)
            if config.preview_every and (done % config.preview_every == 0 or done == config.steps):
                log.flush()
                log.write(
                    {"step": done}
                    | {f"heldout_{k}": float(v) for k, v in heldout_loss(state).items()}
                )
                module = nnx.merge(graphdef, state.trainable, state.frozen)
                save_preview(module, task, run_dir / "previews" / f"{done:07d}.png")
            if stop.is_set() and done < config.steps:
                log.close()
                checkpoints.close()
                print(f"{config.name}: stopped and saved at step {done}", file=sys.stderr)
                return EXIT_PREEMPTED
    log.close()
    checkpoints.close()
    finish(state, task, config, run_dir, known)
    return 0


def prepare_run_dir(config: TrainConfig, run_dir: Path, *, resume: bool, overwrite: bool) -> None:
    """Creates the run directory, or checks that the run in it may go on.

    Raises:
      InputError: see `run`.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other", "one of them")
    record = run_dir / "config.json"
    if overwrite and run_dir.exists():
        if not record.exists() and any(run_dir.iterdir()):
            raise InputError(
                f"--run-dir {run_dir} holds files but no run, so it is not overwritten",
                fix="choose another directory or delete it yourself",
            )
        shutil.rmtree(run_dir)
    content = json.loads(json.dumps(dataclasses.asdict(config)))
    if record.exists():
        if not resume:
            raise InputError(
                f"--run-dir {run_dir} already holds a run",
                fix="add --resume to go on with it, or --overwrite to start again",
            )
        found = json.loads(record.read_text(encoding="utf-8"))
        different = [
            f"{key}: {found.get(key)!r} there, {content.get(key)!r} here"
            for key in sorted(set(found) | set(content))
            if found.get(key) != content.get(key)
        ]
        if different:
            raise InputError(
                f"--run-dir {run_dir} holds a run of another config ({'; '.join(different)})",
                fix="use the same values, or another --run-dir",
            )
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--run-dir {run_dir} cannot be written ({error.strerror})") from error


def is_finished(run_dir: Path) -> bool:
    """Whether a run has written its result."""
    return (run_dir / "done").exists()


def trained_children(config: TrainConfig) -> tuple[str, ...]:
    """The children of the task's module that train: the preset's parts, and the text tower that
    only the contrastive objective has."""
    return (*config.trainable, "text_tower")


def initialise(
    state: TrainState, task: Task, config: TrainConfig, run_dir: Path
) -> tuple[TrainState, set[str]]:
    """Replaces random weights by those of earlier runs.

    Args:
      state: the fresh state.
      task: the task.
      config: the preset; its `init` says `part=run`.
      run_dir: this run's directory; runs are looked for beside it.

    Returns:
      The state, and the parts that do not hold random weights.

    Raises:
      InputError: a malformed entry, an unknown part, or a run without a result.
    """
    known: set[str] = set()
    # One restore for each run, whatever the number of its parts used.
    sources: dict[str, list[str]] = {}
    for entry in config.init:
        part, _, name = entry.partition("=")
        if part not in PARTS or not name:
            raise InputError(f"--init {entry}", f"PART=RUN with PART one of {', '.join(PARTS)}")
        sources.setdefault(name, []).append(part)
    for name, parts in sources.items():
        directory = Path(name) if Path(name).is_absolute() else run_dir.parent / name
        if not is_finished(directory):
            raise InputError(
                f"--init {parts[0]}={name}: {directory} holds no finished run",
                fix=f"train {name} first, or name another run",
            )
        have = json.loads((directory / "done").read_text(encoding="utf-8"))["parts"]
        missing = sorted(set(parts) - set(have))
        if missing:
            raise InputError(f"--init {missing[0]}={name}: that run has only {', '.join(have)}")
        wanted = abstract_parts(task, have)
        loaded = restore_params(directory / "params", wanted)
        for part in parts:
            group = state.trainable if part in state.trainable else state.frozen
            nnx.update(group[part], loaded[part])
        known |= set(parts)
    return state, known


def abstract_parts(task: Task, parts: list[str]) -> nnx.State:
    """Shapes of some children of the model."""
    whole = abstract(task.config)[1]
    return nnx.State({part: whole[part] for part in parts})


def finish(
    state: TrainState, task: Task, config: TrainConfig, run_dir: Path, known: set[str]
) -> None:
    """Writes the run's result: its parts, and a model directory when no part is missing."""
    parts = [p for p in PARTS if p in known or p in config.trainable]
    tree = {p: (state.trainable if p in state.trainable else state.frozen)[p] for p in parts}
    params = nnx.State(tree)
    save_params(run_dir / "params", params)
    if set(parts) == set(PARTS):
        export_model(params, task.config, run_dir / "model", run=config.name)
    marker = {"parts": parts, "parameters": len(flat_params(params)), "steps": config.steps}
    (run_dir / "done").write_text(json.dumps(marker) + "\n", encoding="utf-8")


@contextmanager
def stop_requested() -> Iterator[Any]:
    """An event that SIGTERM and SIGINT set; a second signal acts as usual."""
    event = threading.Event()

    def handle(number: int, frame: Any) -> None:
        event.set()
        signal.signal(number, previous[number])

    previous = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
