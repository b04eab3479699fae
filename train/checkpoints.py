"""Checkpoints of a run: Orbax steps that appear whole or not at all, the newest two kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from janus_jax.errors import InputError
from train.state import TrainState


def _named(state: TrainState) -> dict[str, Any]:
    """`{path: leaf}`: independent of how the state's containers are made."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


class Checkpoints:
    """Saves and restores the state of one run.

    Args:
      directory: where the steps go.
    """

    def __init__(self, directory: Path):
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, cleanup_tmp_directories=True, create=True
            ),
        )

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving `state` in the background (arrays are copied first)."""
        # An error of the save before this one surfaces here, not at the end of the run.
        self._manager.check_for_errors()
        self._manager.save(step, args=ocp.args.StandardSave(_named(state)), force=True)

    def restore(self, like: TrainState) -> TrainState:
        """The newest step, shaped and placed like `like`.

        Raises:
          InputError: the checkpoint has other parameters than the run.
        """
        step = self.latest()
        want = _named(like)
        saved = self._manager.item_metadata(step)
        found = {k: tuple(v.shape) for k, v in saved.items()} if saved is not None else {}
        wrong = [
            f"{k} {found.get(k, 'missing')} instead of {tuple(v.shape)}"
            for k, v in want.items()
            if found.get(k) != tuple(v.shape)
        ] + [f"{k} unexpected" for k in found if k not in want]
        if wrong:
            raise InputError(
                f"checkpoint step {step} does not fit this run: {'; '.join(wrong[:8])}"
                + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""),
                fix="resume with the settings the run was started with, or use --overwrite",
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, want)
        named = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        return jax.tree.unflatten(jax.tree.structure(like), [named[k] for k in want])

    def close(self) -> None:
        """Waits for the save in progress; raises its error if it had one."""
        self._manager.wait_until_finished()
        self._manager.close()
