"""The directory of a run: made once, gone on with only by the same config, by one process."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from janus_jax.errors import InputError
from janus_jax.hosts import team
from train.config import TrainConfig
from train.metrics import last_step

LOCK = ".lock"
# In config.json, beside the settings that a run was started with.
RESOLVED, DIGESTS = "resolved", "data_digests"
# Settings that may change when a run is gone on with: how it is watched, stopped and saved, who
# prepares its data, how much of that may be broken, and on which devices and in which pieces a step
# is made. What is learned is the same, but for rounding.
FREE = (
    *("watch.", "profile.", "guard.", "log_every", "preview_every", "checkpoint_every"),
    *("data_workers", "data_processes", "max_bad_samples"),
    *("mesh", "accumulate", "remat", "loss_chunk"),
)
# What a run writes beside its config, as patterns: all that `overwrite` deletes.
WRITTEN = (
    *("tokenizer.json", "preprocessor.json", "checkpoints", "previews", "goodput.json"),
    *("metrics.jsonl", "bad_steps.jsonl", "bad_samples*.jsonl", "stacks*.txt", "profile"),
    *("tensorboard", "wandb", "wandb.id", "params", "params.orbax-checkpoint-tmp*"),
    *("model", ".model.*.writing", "lengths", "done"),
    *("data/train", "data/heldout", "data/packed", "data/encoded", "data/broken.jsonl"),
)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Creates the directory and holds it for this process; the lock ends with the process.

    Raises:
      InputError: it cannot be written, or another process trains in it.
    """
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
      overwrite: delete what the run that is there has written.

    A run that goes on with other settings of those in `FREE` has them written down. One that has
    not made a step needs no flag, and gives way to other settings if no files were packed for it.

    Raises:
      InputError: a run is there and neither flag is given, or one of another config (lists the
        differences), or the directory holds something that is no run.
    """
    record = run_dir / "config.json"
    content = _plain(config)
    # Hidden files are the lock's, and what file systems and desktops leave.
    if not _is_run(record) and any(path.name[0] != "." for path in run_dir.iterdir()):
        raise InputError(
            f"--run-dir {run_dir} holds files but no run",
            "an empty directory, or that of a run",
        )
    if overwrite:
        _delete_run(run_dir)
    if not record.exists():
        write_json(record, content)
        return
    there = read_json(record)
    settled = {key: there.pop(key) for key in (RESOLVED, DIGESTS) if key in there}
    found, wanted = _dotted(there), _dotted(content)
    different = [
        f"{key}: {found.get(key, 'nothing')!r} there, {wanted.get(key, 'nothing')!r} here"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key) and not key.startswith(FREE)
    ]
    if not _has_begun(run_dir):
        # A start that ended before the first step is in nobody's way. What it has decided may have
        # been wrong; what it has packed and measured took time.
        if not (run_dir / "data").exists():
            _delete_run(run_dir, but=("lengths",))
        elif different:
            raise InputError(
                f"--run-dir {run_dir} holds files packed for another config "
                f"({'; '.join(different)})",
                fix="use the same values, or add --overwrite to pack again",
            )
        write_json(record, content)
        return
    if different:
        raise InputError(
            f"--run-dir {run_dir} holds a run of another config ({'; '.join(different)})",
            fix="use the same values with --resume, or --overwrite, or another --run-dir",
        )
    if not resume:
        raise InputError(
            f"--run-dir {run_dir} already holds a run",
            fix="add --resume to go on with it, or --overwrite to start again",
        )
    if found != wanted:
        write_json(record, content | settled)


def _has_begun(run_dir: Path) -> bool:
    """Whether a run has made a step."""
    saved = run_dir / "checkpoints"
    return (
        any((run_dir / name).exists() for name in ("done", "params", "model"))
        or (saved.is_dir() and any(path.name.isdigit() for path in saved.iterdir()))
        or last_step(run_dir / "metrics.jsonl") > 0
    )


def _is_run(record: Path) -> bool:
    """Whether a file is the config of a run; model directories have one of the same name."""
    needed = {
        field.name
        for field in dataclasses.fields(TrainConfig)
        if field.default is field.default_factory is dataclasses.MISSING
    }
    return record.is_file() and needed <= read_json(record).keys()


def _delete_run(run_dir: Path, but: Sequence[str] = ()) -> None:
    """Deletes what a run has written; the config goes last, so that it can be done again.

    Args:
      run_dir: its directory.
      but: patterns of `WRITTEN` that are left.
    """
    patterns = [pattern for pattern in WRITTEN if pattern not in but]
    for path in [path for pattern in patterns for path in run_dir.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    with suppress(OSError):
        (run_dir / "data").rmdir()  # unless it holds something else
    (run_dir / "config.json").unlink(missing_ok=True)


def read_config(run_dir: Path) -> TrainConfig:
    """The config that the run in a directory was started with.

    Raises:
      InputError: there is no run, or one of a release with other settings.
    """
    record = run_dir / "config.json"
    if not record.is_file():
        raise InputError(f"{run_dir} holds no run", "the directory of a run")
    content = read_json(record)
    given = {key: value for key, value in content.items() if key not in (RESOLVED, DIGESTS)}
    return _built(TrainConfig, given, record)


def read_resolved(run_dir: Path) -> TrainConfig | None:
    """The same with what was left open decided; None where `settle` has written nothing down.

    Raises:
      InputError: as for `read_config`.
    """
    record = run_dir / "config.json"
    resolved = read_json(record).get(RESOLVED)
    if resolved is None:
        return None
    return _built(TrainConfig, _plain(read_config(run_dir)) | resolved, record)


def settle(run_dir: Path, config: TrainConfig, digests: list[str]) -> None:
    """Writes down what a run has found out before its first step, or checks it when it goes on.

    Args:
      run_dir: the directory, whose config is the one that the run was started with.
      config: the same with what was left open decided.
      digests: of each data set in `config.data` and `config.heldout`, what it holds.

    Raises:
      InputError: a data set holds something else than when the run began.
    """
    record = run_dir / "config.json"
    content = read_json(record)
    before = content.get(DIGESTS, digests)
    if before != digests:
        pairs = zip((*config.data, *config.heldout), before, digests, strict=False)
        changed = " ".join(name for name, then, now in pairs if then != now)
        raise InputError(
            f"--data {changed} does not hold what it held when the run in {run_dir} began",
            fix="put the data back, or begin again with --overwrite or in another --run-dir",
        )
    decided = {key: value for key, value in _plain(config).items() if value != content.get(key)}
    settled = {key: value for key, value in ((RESOLVED, decided), (DIGESTS, digests)) if value}
    if settled != {key: content[key] for key in (RESOLVED, DIGESTS) if key in content}:
        write_json(record, content | settled)


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
    same = (run_dir / "config.json").exists() and read_config(run_dir) == config
    if team() is not None and not same:
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


def _plain(config: TrainConfig) -> dict[str, Any]:
    """A config as JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


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
