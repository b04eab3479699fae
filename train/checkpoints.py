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
        self._directory = directory.absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            # Lets a new process look into a step before it restores it.
            item_handlers=ocp.StandardCheckpointHandler(),
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
        """The newest step.

        Args:
          like: a concrete or abstract state of the wanted shapes.

        Returns:
          A state like it, on the default device.

        Raises:
          InputError: there is no step, it is damaged, or it has other parameters than the run.
        """
        step = self.latest()
        if step is None:
            raise InputError(f"{self._directory} holds no checkpoint")
        want = _named(like)
        home = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=home) for k, v in want.items()}
        try:
            found = {k: tuple(v.shape) for k, v in self._manager.item_metadata(step).items()}
        except Exception as error:  # Orbax raises whatever its parsers do
            raise self._damaged(step, error) from error
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
        try:
            named = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except Exception as error:
            raise self._damaged(step, error) from error
        return jax.tree.unflatten(jax.tree.structure(like), [named[k] for k in want])

    def _damaged(self, step: int, error: Exception) -> InputError:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        path = self._directory / str(step)
        return InputError(
            f"checkpoint {path} cannot be read ({reason})",
            fix=f"delete {path} to go on from the step before",
        )

    def close(self) -> None:
        """Waits for the save in progress; raises its error if it had one."""
        self._manager.wait_until_finished()
        self._manager.close()
