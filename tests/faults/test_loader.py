"""Loader workers that are killed, hang or outlive their run."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.jobs import Job, assert_same, steps_saved
from tests.train.data.records.sets import text, write_set
from tests.train.runs import metrics
from train.data.prefetch import WorkerFailed, prefetch

ROOT = Path(__file__).resolve().parents[2]


def hang(step: int) -> int:
    if step == 3:
        time.sleep(10_000)
    return step


def test_loader_worker_that_hangs_is_reported_and_ends_the_run():
    batches = prefetch(hang, 0, 8, processes=2, timeout=10)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WorkerFailed, match=r"no batch for step 3 within 10 s"):
        next(batches)


RUN = """
import os, time
from tests.faults.jobs import Job, assert_same, steps_saved
from tests.train.data.records.sets import text, write_set
from tests.train.runs import metrics
from train.data.prefetch import prefetch
def read(step):
    return os.getpid()
if __name__ == "__main__":
    for worker in prefetch(read, 0, 10**9, processes=1):
        print(worker, flush=True)
        time.sleep(0.05)
"""


def alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def workers(process: int) -> list[int]:
    """The processes that a process has spawned."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end meanwhile
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_loader_worker_killed_ends_a_real_run_and_it_is_gone_on_with(debug_dir, tmp_path):
    data = write_set(tmp_path / "set", map(text, range(30)))
    # More steps than a worker has ready when it is killed.
    flags = ("--data", str(data), "--init", str(debug_dir), "--steps", "12", "--preview-every", "0")
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    untouched = Job(whole, *flags)
    job = Job(run_dir, *flags, "--checkpoint-every", "2", "--data-processes", "1", at="third batch")
    job.come_there()
    [worker] = workers(job.pid)
    os.kill(worker, signal.SIGKILL)
    job.let_go()
    line = job.refused(status=1)
    died = re.match(r"a loader worker died before the batch of step (\d+) was there \(", line)
    assert died and "-9" in line and line.endswith("the run can be resumed"), line
    assert not alive(worker) and not alive(job.pid)
    newest = max(steps_saved(run_dir))
    assert 2 <= newest <= int(died[1]) < 12
    assert [record["step"] for record in metrics(run_dir)] == list(range(1, int(died[1]) + 1))
    assert untouched.ended() == 0, untouched.said()
    # With threads instead: the samples are the same.
    again = Job(run_dir, *flags, "--checkpoint-every", "2", "--resume")
    assert again.ended() == 0 and f"resumed from step {newest}, " in again.said(), again.said()
    assert_same(run_dir, whole, steps=12)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_loader_workers_end_with_their_run_however_it_ends(tmp_path: Path, number: signal.Signals):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert run.stdout is not None
    worker = int(run.stdout.readline())
    assert worker != run.pid and alive(worker)
    # A signal of the cluster reaches the workers too, and must not take them from a run that saves.
    os.kill(worker, signal.SIGTERM)
    for _ in range(5):
        assert int(run.stdout.readline()) == worker
    run.send_signal(number)
    run.wait(timeout=60)
    run.stdout.close()
    deadline = time.monotonic() + 30
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(worker)
