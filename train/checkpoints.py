"""Checkpoints of a run: Orbax steps that appear whole or not at all, the newest two kept.

A step holds two items: `state`, all arrays, and `record`, a small JSON object with everything else
that a resume needs or says: metrics, the sampler's position, the config, the mesh, the time, and a
checksum of every array. What is read back is compared with those checksums, because neither the
file system nor the storage format notices every flipped bit.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, SingleDeviceSharding

from janus_jax.atomic import free_bytes
from janus_jax.errors import InputError
from janus_jax.hosts import team
from train.checkpoint_files import array_storage, data_file, ignore_orphans, locate, root_cause
from train.checksums import checksums
from train.state import TrainState

ROOM = 1.2  # free bytes wanted for each byte of the state, before a save


@dataclass(frozen=True)
class Record:
    """What a checkpoint says of itself.

    Attributes:
      step: steps made.
      saved: when, ISO 8601 in UTC.
      metrics: of the last step.
      sampler: where the data stands; the order is a function of (seed, step), so this is for people
        and for checks.
      config: the run's config.
      mesh: size of each mesh axis it was saved on; empty for one device.
      processes: number of processes it was saved by.
      checksums: of every array, by path.
    """

    step: int
    saved: str
    metrics: dict[str, float] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    mesh: dict[str, int] = field(default_factory=dict)
    processes: int = 1
    checksums: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One line for the person who resumes."""
        sizes = ",".join(f"{axis}={n}" for axis, n in self.mesh.items() if n > 1)
        mesh = f"mesh {sizes}" if sizes else "one device"
        parts = [f"step {self.step}", f"saved {self.saved}"]
        if "loss" in self.metrics:
            parts.append(f"loss {self.metrics['loss']:.4g}")
        processes = "process" if self.processes == 1 else "processes"
        parts.append(f"on {mesh}, {self.processes} {processes}")
        parts += [f"{name.replace('_', ' ')} {value}" for name, value in self.sampler.items()]
        return ", ".join(parts)


class Checkpoints:
    """Saves and restores the state of one run.

    Args:
      directory: where the steps go.
    """

    def __init__(self, directory: Path):
        ignore_orphans()
        self._directory = directory.absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            # Lets a new process look into a step before it restores it.
            item_handlers={"state": array_storage(), "record": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                cleanup_tmp_directories=True,
                create=True,
                # Where a directory cannot be made, the writers in the background would wait for it.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def check_room(self, state: TrainState) -> None:
        """Refuses to go on where the next checkpoint would not fit on the disk.

        Called before the first step as well, so that a run does not end with its first save.

        Args:
          state: what will be saved, abstract or not.

        Raises:
          InputError: less than 1.2 times the state's bytes are free.
        """
        needed = int(ROOM * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)))
        free = free_bytes(self._directory)
        if (others := team()) is not None:
            # All processes see one disk fill up, but must come to one conclusion.
            free = int(others.of_first(str(free)))
        if free < needed:
            kept = self.latest()
            raise InputError(
                f"a checkpoint in {self._directory} takes up to {_size(needed)}; "
                f"its disk has {_size(free)} free"
                + ("" if kept is None else f"; the checkpoint of step {kept} is intact"),
                fix="make room and go on with --resume, or choose another --run-dir",
            )

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        metrics: Mapping[str, float] | None = None,
        sampler: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts saving in the background (arrays are copied first).

        Args:
          step: steps made.
          state: all arrays.
          metrics: of this step.
          sampler: where the data stands.
          config: the run's config.

        Raises:
          InputError: the disk has no room, or the save before this one failed.
        """
        # An error of the save before this one surfaces here, not at the end of the run.
        self._check_last_save()
        self.check_room(state)
        named = _named(state)
        record = Record(
            step=step,
            saved=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            metrics={k: float(v) for k, v in (metrics or {}).items()},
            sampler=dict(sampler or {}),
            config=dict(config or {}),
            mesh=_mesh(named),
            processes=jax.process_count(),
            checksums=checksums(named),
        )
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(named),
                    record=ocp.args.JsonSave(_sealed(asdict(record))),
                ),
                force=True,
            )
        except Exception as error:
            raise self._unwritable(error) from error

    def record(self, step: int | None = None) -> Record:
        """What a step says of itself.

        Args:
          step: a step that is there; by default the newest.

        Raises:
          InputError: there is no step, or its record is damaged.
        """
        step = self._step(step)
        item = self._directory / str(step) / "record"
        try:
            found = self._manager.restore(
                step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
            )["record"]
            seal = found.pop("seal")
            if seal != _sealed(found)["seal"]:
                raise ValueError("its contents do not match their checksum")
            return Record(**found)
        except Exception as error:  # Orbax and the parsers of what it reads raise anything
            raise self._damaged(step, locate(item, error, item / "metadata")) from error

    def restore(
        self, like: TrainState, shardings: TrainState | None = None, *, fall_back: bool = False
    ) -> TrainState:
        """The newest step.

        Args:
          like: a concrete or abstract state of the wanted shapes and dtypes.
          shardings: where each array goes; by default to where that of `like` lies, or to the
            default device. The mesh and the number of processes need not be those it was saved
            with.
          fall_back: where the newest step is damaged, take the one before, and delete the damaged
            one when that is whole.

        Returns:
          A state like it, equal to the saved one to the bit.

        Raises:
          InputError: there is no step, it is damaged, or it has other arrays than the run (a table
            of the differences is printed to stderr).
        """
        newest = self._step(None)
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: list[int] = []
        for step in steps if fall_back else [newest]:
            try:
                state = self._restore(step, like, shardings)
            except _DamagedStep as error:
                if step == steps[-1] or not fall_back:
                    raise
                print(f"{error.what}; falling back to the step before", file=sys.stderr)
                damaged.append(step)
            else:
                for other in damaged:
                    self._manager.delete(other)
                return state
        raise AssertionError(steps)

    def check_finished(self) -> None:
        """Waits for the save in progress.

        Raises:
          InputError: it failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Waits for the save in progress, and ends.

        Raises:
          InputError: it failed, and nobody was told so yet.
        """
        try:
            self.check_finished()
        finally:
            self._manager.close()

    def _restore(self, step: int, like: TrainState, shardings: TrainState | None) -> TrainState:
        want = _named(like)
        item = self._directory / str(step) / "state"
        record = self.record(step)
        try:
            metadata = self._manager.item_metadata(step)["state"]
            found = {k: (tuple(v.shape), str(v.dtype)) for k, v in metadata.items()}
        except Exception as error:
            raise self._damaged(step, locate(item, error, item / "_METADATA")) from error
        self._check_structure(step, found, record, want)
        home = SingleDeviceSharding(jax.devices()[0])
        places = _named(jax.tree.map(_sharding, like) if shardings is None else shardings)
        how = {
            k: ocp.ArrayRestoreArgs(
                sharding=places.get(k) or home, global_shape=tuple(v.shape), dtype=v.dtype
            )
            for k, v in want.items()
        }
        try:
            named = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore(want, restore_args=how))
            )["state"]
        except Exception as error:
            raise self._damaged(step, locate(item, error, item)) from error
        sums = checksums(named)
        if wrong := [k for k in want if sums[k] != record.checksums[k]]:
            raise self._damaged(
                step,
                f"{data_file(item, wrong[0])}: {wrong[0]} does not match its checksum"
                + (f", nor do {len(wrong) - 1} other arrays" if len(wrong) > 1 else ""),
            )
        return jax.tree.unflatten(jax.tree.structure(like), [named[k] for k in want])

    def _check_structure(
        self, step: int, found: dict[str, tuple[Any, str]], record: Record, want: dict[str, Any]
    ) -> None:
        """Refuses a step of other arrays than the run's, and one that misses some of its own."""
        if found.keys() != record.checksums.keys():
            path = self._directory / str(step) / "state" / "_METADATA"
            raise self._damaged(step, f"{path}: it lists other arrays than the step's record")
        wanted = {k: (tuple(v.shape), str(v.dtype)) for k, v in want.items()}
        rows = [
            (k, _described(found.get(k)), _described(wanted.get(k)))
            for k in [*wanted, *(k for k in found if k not in wanted)]
            if found.get(k) != wanted.get(k)
        ]
        if not rows:
            return
        table = [("array", f"checkpoint, step {step}", "this run"), *rows]
        widths = [max(len(row[column]) for row in table) for column in range(2)]
        for name, there, here in table:
            print(f"{name:{widths[0]}}  {there:{widths[1]}}  {here}", file=sys.stderr)
        name, there, here = rows[0]
        raise InputError(
            f"checkpoint {self._directory / str(step)} does not fit this run: {len(rows)} of its "
            f"arrays differ, as listed above, the first being {name}: {there} there, {here} here",
            fix="resume with the settings the run was started with, or use --overwrite",
        )

    def _step(self, step: int | None) -> int:
        step = self.latest() if step is None else step
        if step is None:
            raise InputError(f"{self._directory} holds no checkpoint")
        return step

    def _check_last_save(self) -> None:
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> InputError:
        kept = self.latest()
        before = "there is none before it" if kept is None else f"that of step {kept} is intact"
        place = f"a checkpoint in {self._directory}"
        return InputError(
            f"{place} could not be written ({root_cause(error)}); {before}",
            fix="make room or mend the disk, and go on with --resume",
        )

    def _damaged(self, step: int, reason: str) -> InputError:
        path = self._directory / str(step)
        return _DamagedStep(
            f"checkpoint {path} is damaged ({reason})",
            fix="add --fall-back to go on from the step before it",
        )


class _DamagedStep(InputError):
    """A checkpoint that cannot be read, or not as it was written."""


def _named(state: TrainState) -> dict[str, Any]:
    """`{path: leaf}`: independent of how the state's containers are made."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    return getattr(leaf, "sharding", None)


def _mesh(named: Mapping[str, Any]) -> dict[str, int]:
    for leaf in named.values():
        if isinstance(sharding := _sharding(leaf), NamedSharding):
            return {str(axis): size for axis, size in sharding.mesh.shape.items()}
    return {}


def _sealed(content: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of itself."""
    text = json.dumps(content, sort_keys=True)
    return {**content, "seal": f"{zlib.crc32(text.encode()):08x}"}


def _described(found: tuple[Any, str] | None) -> str:
    return "missing" if found is None else f"{found[1]} {list(found[0])}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
