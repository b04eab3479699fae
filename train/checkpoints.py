"""Checkpoints of a run: Orbax steps that appear whole or not at all, the newest two kept.

A step holds two items: `state`, all arrays, and `record`, a small JSON object with everything else
that a resume needs or says: metrics, the sampler's position, the config, the mesh, the time, and a
checksum of every array. What is read back is compared with those checksums, because neither the
file system nor the storage format notices every flipped bit.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, SingleDeviceSharding

from janus_jax.atomic import free_bytes
from janus_jax.errors import InputError, RunFailed
from janus_jax.hosts import is_first, team, wait
from train.checkpoint_files import (
    array_storage,
    data_file,
    ignore_orphans,
    is_of_the_system,
    locate,
    root_cause,
)
from train.checkpoint_record import Record, sealed, unseal
from train.checksums import checksums
from train.state import TrainState

ROOM = 1.2  # free bytes wanted for each byte of the state, before a save
_KEPT = 2


class Checkpoints:
    """Saves and restores the state of one run.

    Args:
      directory: where the steps go.
    """

    def __init__(self, directory: Path):
        ignore_orphans()
        self._directory = directory.absolute()
        # Reads without the manager: that has all processes wait for one another at the end, those
        # too that met no damage in their parts of the arrays, while the others have left.
        self._arrays = array_storage()
        self._manager = ocp.CheckpointManager(
            self._directory,
            # Lets a new process look into a step before it restores it.
            item_handlers={"state": array_storage(), "record": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT,
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

        Args:
          state: what will be saved, abstract or not.

        Raises:
          InputError: less than 1.2 times the state's bytes are free.
        """
        self._check_free("a checkpoint in", _room(state))

    def check_room_for_all(self, state: TrainState, saves: int, result: int) -> None:
        """Refuses to begin where the disk would be full before the end of the run.

        A step is deleted when the second one after it is complete: there are three for a moment.

        Args:
          state: what will be saved, abstract or not.
          saves: checkpoints that will be written.
          result: bytes that are written beside the last checkpoints, at the end.

        Raises:
          InputError: there is less room.
        """
        there = len(self._manager.all_steps())
        at_most = min(max(_KEPT + 1 - there, 0), saves) * _room(state)
        at_the_end = min(max(_KEPT - there, 0), saves) * _room(state) + result
        self._check_free("what the run still writes in", max(at_most, at_the_end))

    def _check_free(self, what: str, needed: int) -> None:
        free = free_bytes(self._directory)
        if (others := team()) is not None:
            # All processes see one disk fill up, but must come to one conclusion.
            free = int(others.of_first(str(free)))
        if free < needed:
            kept = self.latest()
            raise InputError(
                f"{what} {self._directory} takes up to {_size(needed)}; "
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
        evaluation_due: bool = False,
    ) -> None:
        """Starts saving in the background (arrays are copied first).

        Args:
          step: steps made.
          state: all arrays.
          metrics: of this step.
          sampler: where the data stands.
          config: the run's config.
          evaluation_due: see `Record`.

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
            evaluation_due=evaluation_due,
        )
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(named),
                    record=ocp.args.JsonSave(sealed(record)),
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
        path = self._directory / str(step) / "record" / "metadata"
        try:
            return unseal(path.read_text(encoding="utf-8"))
        except Exception as error:  # damaged JSON can be of any types
            raise self._unread(step, locate(path.parent, error, path), error) from error

    def restore(
        self, like: TrainState, shardings: TrainState | None = None, *, fall_back: bool = False
    ) -> TrainState:
        """The newest step.

        Args:
          like: a concrete or abstract state of the wanted shapes and dtypes.
          shardings: where each array goes; by default to where that of `like` lies, or to the
            default device. The mesh and the number of processes need not be those it was saved
            with.
          fall_back: where the newest step is damaged, take the one before, and set the damaged one
            aside when that is whole. Of several processes all do, whichever met the damage.

        Returns:
          A state like it, equal to the saved one to the bit.

        Raises:
          InputError: there is no step, it is damaged, or it has other arrays than the run (a table
            of the differences is printed to stderr).
          RunFailed: it cannot be read now, for want of memory or because storage refused.
        """
        newest = self._step(None)
        steps = sorted(self._manager.all_steps(), reverse=True) if fall_back else [newest]
        for number, step in enumerate(steps):
            found, cause, damage = None, None, ""
            try:
                found = self._read(step, like, shardings)
            except _DamagedStep as error:
                cause, damage = error, error.what
            if (others := team()) is not None:
                damage = others.any_of(damage)
            if found is not None and not damage:
                damage = self._mismatch(*found)
            if found is not None and not damage:
                self._set_aside(steps[:number])
                return jax.tree.unflatten(
                    jax.tree.structure(like), [found[1][k] for k in _named(like)]
                )
            if step == steps[-1]:
                raise _DamagedStep(damage, fix=_ALL_DAMAGED if fall_back else _FALL_BACK) from cause
            if is_first():
                print(f"{damage}; falling back to the step before", file=sys.stderr)
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
            # Without a save Orbax waits for its cleaning by nobody, and where Python ends in the
            # midst of it, prints a traceback. Not public, but there is no other way to it.
            cleaning = getattr(self._manager, "_cleanup_tmp_directory_future", None)
            if cleaning is not None:
                with suppress(Exception):  # what could not be cleaned is cleaned by the next run
                    cleaning.result()
            self._manager.close()

    def _read(
        self, step: int, like: TrainState, shardings: TrainState | None
    ) -> tuple[Record, dict[str, jax.Array]]:
        """The record of a step, and this process's part of its arrays, by path."""
        want, record = _named(like), self.record(step)
        item = self._manager.directory / str(step) / "state"
        try:
            metadata: Any = self._arrays.metadata(item)
            found = {k: (tuple(v.shape), str(v.dtype)) for k, v in metadata.items()}
        except Exception as error:  # Orbax and the parsers of what it reads raise anything
            where = locate(Path(item), error, Path(item) / "_METADATA")
            raise self._unread(step, where, error) from error
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
            args = ocp.args.PyTreeRestore(want, restore_args=how)
            return record, self._arrays.restore(item, args=args)
        except Exception as error:
            raise self._unread(step, locate(Path(item), error, Path(item)), error) from error

    def _mismatch(self, record: Record, named: Mapping[str, jax.Array]) -> str:
        """What is wrong with the numbers of a step, the same on all processes; empty: nothing."""
        sums = checksums(named)
        wrong = [k for k in named if sums[k] != record.checksums[k]]
        if not wrong:
            return ""
        file = data_file(self._directory / str(record.step) / "state", wrong[0])
        more = f", nor do {len(wrong) - 1} other arrays" if len(wrong) > 1 else ""
        where = f"{file}: {wrong[0]} does not match its checksum{more}"
        return self._damaged(record.step, where).what

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Gives damaged steps a name that is no step's, so that the run can make and save them."""
        if not steps:
            return
        if is_first():
            for step in steps:
                path = self._directory / str(step)
                aside = path.with_name(f"damaged-{step}-{datetime.now(UTC):%Y%m%dT%H%M%S}")
                path.rename(aside)
                print(f"{path} is now {aside}; nothing needs it any more", file=sys.stderr)
        wait("damaged steps are set aside")
        self._manager.reload()

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

    def _unread(self, step: int, reason: str, error: Exception) -> Exception:
        """What to raise where a step could not be read."""
        if not is_of_the_system(error):
            return self._damaged(step, reason)
        return RunFailed(
            f"checkpoint {self._directory / str(step)} cannot be read now ({reason}); it may be "
            "whole: mend what is wrong, and go on with --resume"
        )

    def _damaged(self, step: int, reason: str) -> InputError:
        path = self._directory / str(step)
        return _DamagedStep(f"checkpoint {path} is damaged ({reason})", fix=_FALL_BACK)


_FALL_BACK = "add --fall-back to go on from the step before it"
_ALL_DAMAGED = "copy a whole one from elsewhere, or begin again with --overwrite"


class _DamagedStep(InputError):
    """A checkpoint that cannot be read, or not as it was written."""


def _named(state: TrainState) -> dict[str, Any]:
    """`{path: leaf}`: independent of how the state's containers are made."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _room(state: TrainState) -> int:
    return int(ROOM * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)))


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    return getattr(leaf, "sharding", None)


def _mesh(named: Mapping[str, Any]) -> dict[str, int]:
    for leaf in named.values():
        if isinstance(sharding := _sharding(leaf), NamedSharding):
            return {str(axis): size for axis, size in sharding.mesh.shape.items()}
    return {}


def _described(found: tuple[Any, str] | None) -> str:
    return "missing" if found is None else f"{found[1]} {list(found[0])}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
