"""The watchdog: when it barks, what it says, and that it can end a process."""

import subprocess
import sys
import time

import pytest

from janus_jax.errors import InputError
from train.watch.config import WatchConfig
from train.watch.watchdog import FIRST, Watchdog

SECONDS = 0.2


def hangs_here(seconds: float) -> None:
    time.sleep(seconds)


def test_a_hang_is_reported_once_with_the_stacks_of_all_threads(tmp_path, capsys):
    path = tmp_path / "stacks.txt"
    watchdog = Watchdog(SECONDS, path)
    watchdog.beat(7)
    hangs_here(4 * SECONDS)
    watchdog.beat(8)
    watchdog.close()
    text = path.read_text()
    assert text.count("watchdog: no step has ended for 0 s after step 7") == 1
    assert "in hangs_here" in text and text.count("hread 0x") >= 2
    assert capsys.readouterr().err == text


def test_each_hang_is_reported(tmp_path):
    path = tmp_path / "stacks.txt"
    watchdog = Watchdog(SECONDS, path)
    for step in (1, 2):
        watchdog.beat(step)
        time.sleep(3 * SECONDS)
    watchdog.close()
    assert [f"after step {step}" in path.read_text() for step in (1, 2)] == [True, True]


def test_a_run_that_never_makes_its_first_step_is_reported(tmp_path):
    path = tmp_path / "stacks.txt"
    watchdog = Watchdog(SECONDS, path)
    time.sleep(2 * FIRST * SECONDS)
    watchdog.close()
    assert path.read_text().count("after step 0") == 1


def test_an_evaluation_that_hangs_is_reported(tmp_path):
    path = tmp_path / "stacks.txt"
    watchdog = Watchdog(SECONDS, path)
    watchdog.beat(5)
    with watchdog.patient():
        time.sleep(2 * FIRST * SECONDS)
    watchdog.close()
    assert path.read_text().count("after step 5") == 1


def test_steps_the_first_compilation_and_evaluations_are_no_hang(tmp_path):
    seconds = 0.6  # the machine may stall for most of it
    path = tmp_path / "stacks.txt"
    watchdog = Watchdog(seconds, path)
    time.sleep(1.5 * seconds)
    for step in range(8):
        watchdog.beat(step)
        time.sleep(seconds / 5)
    with watchdog.patient():
        time.sleep(1.5 * seconds)
    watchdog.close()
    assert not path.exists()


def test_nothing_is_watched_by_default(tmp_path):
    watchdog = Watchdog(WatchConfig().watchdog_seconds, tmp_path / "stacks.txt")
    watchdog.beat(1)
    assert watchdog._thread is None
    watchdog.close()


def test_it_can_end_the_process(tmp_path):
    program = f"""
import pathlib, time
from train.watch.watchdog import Watchdog
Watchdog(0.2, pathlib.Path({str(tmp_path / "stacks.txt")!r}), ends=True).beat(3)
time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "after step 3" in done.stderr and 'File "<string>", line 5' in done.stderr


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_meaningless_seconds_are_refused(seconds):
    with pytest.raises(InputError, match="watchdog-seconds"):
        WatchConfig(watchdog_seconds=seconds)
