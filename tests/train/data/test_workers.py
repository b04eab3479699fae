"""Worker processes end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from train.data.workers import worker_pool

ROOT = Path(__file__).parents[3]
PARENT = """
import sys
from tests.train.data.test_workers import pid_then_wait
from train.data.workers import worker_pool

if __name__ == "__main__":
    with worker_pool(1) as pool:
        pool.submit(pid_then_wait, sys.argv[1]).result()
"""
prepared: list[int] = []


def pid_then_wait(path: str) -> None:
    """Writes this process' number and is busy for longer than the test is."""
    Path(path + ".new").write_text(str(os.getpid()))
    os.rename(path + ".new", path)
    time.sleep(60)


def prepare(number: int) -> None:
    prepared.append(number)


def what_is_prepared(_: int) -> list[int]:
    return prepared


def until(true, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that ended stays listed until its new parent asks for its status.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_worker_ends_soon_after_a_parent_that_is_killed(tmp_path):
    said, script = tmp_path / "pid", tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(said)], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    until(said.exists)
    worker = int(said.read_text())
    assert alive(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not alive(worker), 10.0)


def test_workers_are_prepared_once():
    with worker_pool(1, prepare, 7) as pool:
        assert list(pool.map(what_is_prepared, range(3))) == [[7]] * 3
