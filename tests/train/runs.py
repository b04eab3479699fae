"""Small versions of the real presets, and readers for what a run leaves behind."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from train.config import TrainConfig
from train.presets import PRESETS
from train.state import TrainState


def tiny(name: str, **changes: Any) -> TrainConfig:
    """A real preset on the debug model, in the smallest batch its mixture allows."""
    preset = PRESETS[name]
    parts = dataclasses.astuple(preset.mixture)
    settings: dict[str, Any] = dict(model="debug", batch_size=sum(parts) or 2, log_every=1)
    return dataclasses.replace(preset, **{**settings, **changes})


def make_idle_step(*args: Any, **kwargs: Any) -> Any:
    """In the place of `train.step.make_step`: steps that compute nothing, and need no compiling."""

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        values = dict.fromkeys(("loss", "grad_norm", "skipped"), jnp.zeros(()))
        guard = {"bad": False, "in_a_row": 0, "usual": 1.0}
        return dataclasses.replace(state, step=state.step + 1), {**values, "guard": guard}

    return step


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The run's metrics without the speed, which no two runs share."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k != "steps_per_second"} for r in records]


def checkpoint(run_dir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by path, read without our code."""
    path = (run_dir / "checkpoints" / str(step) / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        names = reader.metadata(path).item_metadata
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names.tree}
        tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=how))
    return {key: np.asarray(value) for key, value in tree.items()}


def params(run_dir: Path) -> dict[str, np.ndarray]:
    """The parameters a finished run hands on, by path, read without our code."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore((run_dir / "params").absolute())
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in flat}
