"""Conversions that are killed, stopped, or run out of disk: never half a model."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from janus_jax.checkpoint import load_model
from janus_jax.locate import is_model
from tests.convert.whole import save_deepseek
from tests.faults.converting import converting
from tests.faults.processes import forkserver

KILLS = 10


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sources") / "janus-tiny"
    save_deepseek(path, torch.float32)
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory):
    """Starts `janus-jax convert` in a process of its own.

    Processes are forked from a server that has imported everything and started no thread, so each
    of them is at work within milliseconds.
    """
    context = forkserver()

    def start(source: Path, target: Path, *flags: str, file_limit: int = 0):
        log = target.with_name(f"{target.name}.log")
        options = {"log": log, "file_limit": file_limit}
        process = context.Process(target=converting, args=(source, target, *flags), kwargs=options)
        process.start()
        return process, log

    process, log = start(
        source_of_nothing := tmp_path_factory.mktemp("start") / "none", source_of_nothing
    )
    process.join(120)
    assert process.exitcode == 2, log.read_text()
    return start


def fingerprint(path: Path) -> str:
    """Identifies the weights, each compared with its checksum, of a model directory."""
    return load_model(path, dtype="float32", verify=True).fingerprint


def left(target: Path) -> list[Path]:
    return [path for path in target.parent.iterdir() if path.name.endswith(".writing")]


def finished(process, log: Path, status: int = 0) -> str:
    process.join(60)
    assert process.exitcode == status, log.read_text()
    return log.read_text()


def test_killed_at_random_moments(source, start, tmp_path):
    """First with nothing at the destination, then with a model there that is to be replaced."""
    target = tmp_path / "model"
    began = time.monotonic()
    finished(*start(source, tmp_path / "untouched"))
    whole = time.monotonic() - began
    wanted = fingerprint(tmp_path / "untouched")

    moments = random.Random(0)
    interrupted = during = 0
    for kill in range(KILLS):
        flags = ("--overwrite",) if target.exists() else ()
        process, _ = start(source, target, *flags)
        time.sleep(moments.uniform(0.1, 1.0) * whole)
        process.kill()
        process.join(60)
        interrupted += process.exitcode == -signal.SIGKILL
        during += bool(left(target))
        assert len(left(target)) <= 1, kill
        if target.exists():
            assert is_model(target) and fingerprint(target) == wanted, kill
        if kill == KILLS // 2 - 1:
            finished(*start(source, target, *(("--overwrite",) if target.exists() else ())))
            assert left(target) == []
    assert interrupted >= KILLS - 2 and during >= 3

    finished(*start(source, target, "--overwrite"))
    assert left(target) == [] and fingerprint(target) == wanted


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cleans_up(number, status, source, start, tmp_path):
    target = tmp_path / "model"
    process, log = start(source, target)
    while not left(target):
        time.sleep(0.005)
    os.kill(process.pid, number)
    finished(process, log, status)
    assert not target.exists() and left(target) == []
    assert log.read_text().count("\n") == 1


@pytest.mark.parametrize("to", ["orbax", "hf", "deepseek"])
def test_a_file_that_cannot_grow(to, source, start, tmp_path):
    """The system's own refusal, in the midst of the weights."""
    target = tmp_path / "model"
    text = finished(*start(source, target, "--to", to, file_limit=30_000), status=2)
    # Orbax's threads may remark on their own end before.
    last = text.splitlines()[-1]
    assert last.startswith(f"janus-jax: error: {str(target)!r} cannot be written (File too large)")
    assert not target.exists() and left(target) == []
