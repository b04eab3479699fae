"""Directories that appear whole or not at all."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from janus_jax import atomic
from janus_jax.atomic import new_directory
from janus_jax.errors import InputError


def is_ours(path: Path) -> bool:
    return (path / "mark").is_file()


def write(target: Path, text: str = "new", **options) -> None:
    with new_directory(target, what="ours", replaceable=is_ours, **options) as new:
        (new / "mark").write_text(text)


def leftover(target: Path, letters: str = "abcdefgh") -> Path:
    """What a killed process leaves."""
    work = target.parent / f".{target.name}.{letters}.writing"
    (work / "new").mkdir(parents=True)
    (work / "new" / "mark").write_text("half")
    return work


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "model[1]"  # with characters that mean something in a pattern


def test_it_appears_and_is_replaced(target):
    write(target)
    assert (target / "mark").read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o777 & ~_umask()
    write(target, "newer")
    assert (target / "mark").read_text() == "newer"
    assert list(target.parent.iterdir()) == [target]
    (target.parent / "empty").mkdir()
    write(target.parent / "empty")
    assert (target.parent / "empty" / "mark").is_file()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_an_interrupted_one(target, stop):
    write(target, "old")
    with (
        pytest.raises(stop),
        new_directory(target, what="ours", replaceable=is_ours) as new,
    ):
        (new / "mark").write_text("half")
        raise stop
    assert (target / "mark").read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_leftovers_are_removed(target):
    left = leftover(target)
    write(target)
    assert not left.exists() and list(target.parent.iterdir()) == [target]


def test_leftovers_of_another_destination_are_not(target):
    other = target.with_name(f"{target.name}.b")
    left = leftover(other)
    (left / "old").mkdir()
    write(target)
    assert left.exists() and not other.exists()


def test_what_was_being_replaced_is_put_back(target):
    write(target, "old")
    left = leftover(target)
    target.rename(left / "old")  # killed between the two renames
    with (
        pytest.raises(RuntimeError),
        new_directory(target, what="ours", replaceable=is_ours),
    ):
        assert (target / "mark").read_text() == "old"
        raise RuntimeError
    assert (target / "mark").read_text() == "old" and not left.exists()


def test_the_directory_of_a_living_writer_is_left_alone(target):
    left = leftover(target)
    lock = os.open(left, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(InputError, match="is being written by another process"):
            write(target)
        assert (left / "new" / "mark").read_text() == "half" and not target.exists()
    finally:
        os.close(lock)
    write(target)
    assert not left.exists()


def test_it_is_locked_while_it_is_written(target):
    with (
        new_directory(target, what="ours", replaceable=is_ours),
        pytest.raises(InputError, match="another process"),
    ):
        write(target)
    assert target.is_dir()


def test_other_peoples_files_are_not_replaced(target):
    target.mkdir(parents=True)
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something that is not ours"):
        write(target)
    assert [p.name for p in target.iterdir()] == ["thesis.tex"]
    link = target.with_name("link")
    link.symlink_to(target)
    for path in (link, target / "thesis.tex"):
        with pytest.raises(InputError, match="is no directory"):
            write(path)


def test_too_little_room_is_said_beforehand(target, monkeypatch):
    usage = shutil.disk_usage(target.parent.parent)._replace(free=3 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"takes 14\.80 GB; its disk has 3\.00 GB free"):
        write(target, needed=14_800_000_000)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_where_nothing_can_be_written_the_reason_is_given(target, code, monkeypatch):
    def refuse(**_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError, match=rf"cannot be written \({os.strerror(code)}\)"):
        write(target)


def test_a_disk_that_fills_up_leaves_nothing(target):
    with (
        pytest.raises(InputError, match="No space left on device"),
        new_directory(target, what="ours", replaceable=is_ours) as new,
    ):
        (new / "mark").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(target.parent.iterdir()) == []
