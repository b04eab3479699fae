"""Real signals to real training processes, wherever they are; and two processes on one run."""

import re
import signal
import socket
import time

import pytest

from tests.faults.jobs import EVALUATED, Job, go_on_to_the_end, steps_saved
from tests.multiprocess.children import free_port
from tests.train.runs import metrics
from train.metrics import is_evaluation

AT_ONCE = 30  # seconds that a scheduler waits between SIGTERM and SIGKILL


def stopped_at(job: Job) -> int:
    """Stops a job where it waits; the step that it saved."""
    job.come_there()
    job.send(signal.SIGTERM)
    assert job.ended(AT_ONCE) == 75, job.said()
    stopped = re.search(r"emoji-llm: stopped and saved at step (\d)\n", job.said())
    assert stopped and "Traceback" not in job.said(), job.said()
    return int(stopped[1])


@pytest.mark.parametrize(("at", "saved"), [("step", None), ("data wait", 2)])
def test_sigterm_in_a_step_or_a_data_wait_saves_and_exits_75(at, saved, whole, tmp_path):
    run_dir = tmp_path / "run"
    step = stopped_at(Job(run_dir, at=at))
    assert steps_saved(run_dir) == [step] and step == (saved or step)
    said = go_on_to_the_end(run_dir, whole)
    assert f"resumed from step {step}, saved 20" in said
    assert f"next sample {2 * step}" in said


def test_sigterm_in_an_evaluation_saves_and_the_resumed_run_makes_it_up(whole, tmp_path):
    run_dir = tmp_path / "run"
    assert stopped_at(Job(run_dir, *EVALUATED, at="evaluation of step 3")) == 3
    assert steps_saved(run_dir) == [3]
    assert not any(is_evaluation(record) for record in metrics(run_dir))
    # The next stop is in the last one: all steps are made, and yet the run is not done.
    again = Job(run_dir, "--resume", *EVALUATED, at="evaluation of step 6")
    assert stopped_at(again) == 6
    assert "resumed from step 3, " in again.said()
    assert "its evaluation is made up first\n" in again.said()
    assert [r["step"] for r in metrics(run_dir) if is_evaluation(r)] == [3]
    assert not (run_dir / "done").exists()
    # A kill after it was made up, and before that was saved, makes it up once more.
    third = Job(run_dir, "--resume", *EVALUATED, at="result")
    third.come_there()
    third.kill()
    assert [r["step"] for r in metrics(run_dir) if is_evaluation(r)] == [3, 6]
    # Each is there once, as in a run that nothing interrupted.
    go_on_to_the_end(run_dir, whole, *EVALUATED)
    assert (run_dir / "done").exists()


def test_sigterm_in_the_first_compilation_exits_75_at_once(whole, tmp_path):
    run_dir = tmp_path / "run"
    job = Job(run_dir, at="first compilation")
    job.come_there()
    time.sleep(0.3)
    began = time.monotonic()
    job.send(signal.SIGTERM)
    assert job.ended(AT_ONCE) == 75, job.said()
    # It does not wait for the compiler, which takes longer.
    assert time.monotonic() - began < 10
    assert "stopped before the first step; nothing to save\n" in job.said()
    assert steps_saved(run_dir) == []
    go_on_to_the_end(run_dir, whole)


def test_sigterm_while_data_is_packed_exits_75_at_once(tmp_path):
    job = Job(tmp_path / "run", at="resolution")
    job.come_there()
    job.send(signal.SIGTERM)
    assert job.ended(AT_ONCE) == 75, job.said()
    assert job.said() == "stopped before the first step; nothing to save\n"


def test_sigterm_while_other_processes_are_waited_for_exits_75_at_once(tmp_path):
    port = free_port()
    hosts = ("--hosts.coordinator", f"localhost:{port}", "--hosts.processes", "2")
    job = Job(tmp_path / "run", *hosts, "--hosts.process", "0")
    end = time.monotonic() + AT_ONCE
    while True:
        with socket.socket() as box:
            if box.connect_ex(("localhost", port)) == 0:
                break
        assert job.running() and time.monotonic() < end, job.said()
        time.sleep(0.05)
    job.send(signal.SIGTERM)
    assert job.ended(AT_ONCE) == 75, job.said()
    assert "stopped before the first step; nothing to save\n" in job.said()


def test_a_second_signal_aborts_fast_with_nothing_half_visible(whole, tmp_path):
    run_dir = tmp_path / "run"
    job = Job(run_dir, "--checkpoint-every", "2", at="commit of step 4")
    job.come_there()
    # All of it is written, and it is no step yet.
    [unfinished] = (run_dir / "checkpoints").glob("4.*")
    assert (unfinished / "state" / "_METADATA").exists() and steps_saved(run_dir) == [2]
    job.send(signal.SIGTERM)
    time.sleep(0.5)
    assert job.running(), job.said()
    began = time.monotonic()
    job.send(signal.SIGTERM)
    assert job.ended(AT_ONCE) == 128 + signal.SIGTERM, job.said()
    assert time.monotonic() - began < 10
    assert steps_saved(run_dir) == [2] and unfinished.exists()
    # Step 4 is not saved again, which would replace what was left of it.
    said = go_on_to_the_end(run_dir, whole, "--checkpoint-every", "6")
    assert "resumed from step 2, " in said
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"2", "6"}


def test_two_jobs_on_one_run_directory_the_second_is_refused(whole, tmp_path):
    run_dir = tmp_path / "run"
    first = Job(run_dir, at="data wait")
    first.come_there()
    line = Job(run_dir, "--resume").refused()
    assert line.startswith(f"--run-dir {run_dir} is in use by another process")
    # The first one has not noticed; killed, it leaves the directory to others.
    first.kill()
    go_on_to_the_end(run_dir, whole)
