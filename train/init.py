"""Where a run's first parameters come from: earlier runs and model directories."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.config import JanusConfig
from janus_jax.errors import InputError
from janus_jax.functional import abstract
from janus_jax.locate import is_model
from janus_jax.params_io import restore_params
from janus_jax.sharding import param_shardings
from train import rundir
from train.config import PARTS, TrainConfig


def initial_parts(
    config: TrainConfig,
    run_dir: Path,
    model: JanusConfig,
    mesh: Mesh,
    wanted: Collection[str],
) -> dict[str, nnx.State]:
    """Parts that come from earlier runs, or from model directories.

    Args:
      config: the preset; its `init` says `part=run`.
      run_dir: this run's directory; runs are looked for beside it.
      model: the architecture.
      mesh: where the parameters go.
      wanted: parts to read, those that `init` does not name left out.

    Returns:
      For each part its parameters, a layer at a time as they are on disk; those of the tokenizer,
      which every process uses by itself, whole on its first device.

    Raises:
      InputError: a run without a result, or without that part.
    """
    # One restore for each run, whatever the number of its parts used.
    sources: dict[str, list[str]] = {}
    for part, name in config.initial_runs().items():
        if part in wanted:
            sources.setdefault(name, []).append(part)
    loaded: dict[str, nnx.State] = {}
    shapes = abstract(model)[1]
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
        like = nnx.State({part: shapes[part] for part in parts})
        where = param_shardings(like, mesh)
        if "vq" in parts:
            whole = NamedSharding(mesh, PartitionSpec())
            where["vq"] = jax.tree.map(lambda _, to=whole: to, where["vq"])
        found = restore_params(directory / "params", like, where, partial=True)
        loaded |= {part: found[part] for part in parts}
    if "vq" in loaded:
        loaded["vq"] = jax.tree.map(lambda x: x.addressable_data(0), loaded["vq"])
    return loaded
