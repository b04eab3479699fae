"""The directory of a run: made once, gone on with only by the same config, by one process."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from janus_jax.errors import InputError
from janus_jax.hosts import team
from train.config import TrainConfig

LOCK = ".lock"
# Settings that may change when a run is gone on with: how it is watched, stopped and saved, who
# prepares its data, and on which devices and in which pieces a step is made. What is learned is the
# same, but for rounding.
FREE = (
    *("watch.", "profile.", "guard.", "log_every", "preview_every", "checkpoint_every"),
    *("data_workers", "data_processes", "mesh", "accumulate", "remat", "loss_chunk"),
)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Creates the directory and holds it for this process; the lock ends with the process.

    Raises:
      InputError: it cannot be written, or another process trains in it.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system: runs are not protected from one another
        run_dir.mkdir(parents=True, exist_ok=True)
        yield
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = (run_dir / LOCK).open("a")
    except OSError as error:
        raise InputError(
            f"--run-dir {run_dir} cannot be written ({error.strerror})",
            fix="choose another directory",
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"--run-dir {run_dir} is in use by another process",
                fix="wait for it or stop it, or choose another directory",
            ) from error
        yield


def prepare(config: TrainConfig, run_dir: Path, *, resume: bool, overwrite: bool) -> None:
    """Writes the config into a new run, or checks that the run that is there may go on.

    Args:
      config: the resolved preset.
      run_dir: an existing directory, held by `locked`.
      resume: go on with the run that is there, if it has the same config.
      overwrite: delete the run that is there.

    A run that goes on with other settings of those in `FREE` has them written down.

    Raises:
      InputError: a run is there and neither flag is given, or one of another config (lists the
        differences), or `overwrite` would delete something that is no run.
    """
    record = run_dir / "config.json"
    content = json.loads(json.dumps(dataclasses.asdict(config)))
    others = [path for path in run_dir.iterdir() if path.name != LOCK]
    if overwrite and others:
        if not record.exists():
            raise InputError(
                f"--run-dir {run_dir} holds files but no run, so it is not overwritten",
                fix="choose another directory or delete it yourself",
            )
        # The record goes last, so that a deletion cut short can be repeated.
        for path in sorted(others, key=lambda path: path == record):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not record.exists():
        write_json(record, content)
        return
    if not resume:
        raise InputError(
            f"--run-dir {run_dir} already holds a run",
            fix="add --resume to go on with it, or --overwrite to start again",
        )
    found, wanted = _dotted(read_json(record)), _dotted(content)
    different = [
        f"{key}: {found.get(key, 'nothing')!r} there, {wanted.get(key, 'nothing')!r} here"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key) and not key.startswith(FREE)
    ]
    if different:
        raise InputError(
            f"--run-dir {run_dir} holds a run of another config ({'; '.join(different)})",
            fix="use the same values, or another --run-dir",
        )
    if found != wanted:
        write_json(record, content)


def read_config(run_dir: Path) -> TrainConfig:
    """The config of the run in a directory.

    Raises:
      InputError: there is no run, or one of a release with other settings.
    """
    record = run_dir / "config.json"
    if not record.is_file():
        raise InputError(f"{run_dir} holds no run", "the directory of a run")
    return _built(TrainConfig, read_json(record), record)


@contextmanager
def writable(run_dir: Path) -> Iterator[None]:
    """Says in one line when the disk of a run in progress takes no more.

    Raises:
      InputError: it is full, or has become read-only.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        raise InputError(
            f"--run-dir {run_dir} cannot be written any more ({error.strerror})",
            fix="make room or mend the disk, and go on with --resume",
        ) from error


def check_shared(config: TrainConfig, run_dir: Path) -> None:
    """Refuses a directory that is not the one which process 0 has prepared.

    Raises:
      InputError: it is on this host's own disk, or the hosts were given different settings.
    """
    content = json.loads(json.dumps(dataclasses.asdict(config)))
    path = run_dir / "config.json"
    if team() is not None and not (path.exists() and read_json(path) == content):
        raise InputError(
            f"--run-dir {run_dir} is not what process 0 has made of it",
            "a directory that all hosts share, and the same flags on each of them",
        )


def is_finished(run_dir: Path) -> bool:
    """Whether a run has written its result."""
    return (run_dir / "done").exists()


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object of a run.

    Raises:
      InputError: it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a small JSON object, whole or not at all.

    Raises:
      InputError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror})",
            fix="make room or mend the disk; a run goes on with --resume",
        ) from error


def _built(cls: type, content: dict[str, Any], record: Path) -> Any:
    """A dataclass from what `dataclasses.asdict` and JSON made of it."""
    hints = typing.get_type_hints(cls)
    unknown = sorted(content.keys() - {field.name for field in dataclasses.fields(cls)})
    if unknown:
        raise InputError(
            f"{record} has the setting {unknown[0]!r}, which this release does not know"
        )
    values: dict[str, Any] = {}
    for name, value in content.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _built(typing.cast(type, hints[name]), value, record)
        values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _dotted(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under the names their flags have."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
