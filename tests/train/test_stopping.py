"""Signals, sent to real processes that do nothing but wait for them."""

import signal
import subprocess
import sys
import threading

import pytest

from train.stopping import Stop, Stopped, stop_on_signal

# What the process prints says when it is ready; `wait` sleeps without returning to the loop.
PROGRAM = """
import sys, threading, time
from train.stopping import stop_on_signal
with stop_on_signal() as stop:
    {before}
    print("ready", flush=True)
    {body}
"""
FOR_EVER = "threading.Thread(target=lambda: None).start(); time.sleep(60)"


def signalled(before: str, body: str, *signals: signal.Signals) -> tuple[int, str]:
    status, err, _ = run_signalled(PROGRAM.format(before=before, body=body), *signals)
    return status, err


def run_signalled(program: str, *signals: signal.Signals) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, err, out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_ends_at_once(number):
    status, err = signalled("pass", FOR_EVER, number)
    assert status == 75
    assert err.splitlines() == ["stopped before the first step; nothing to save"]


def test_a_signal_during_the_steps_is_seen_by_the_loop():
    body = "\n    while not stop.requested: time.sleep(0.01)\n    sys.exit(75)"
    assert signalled("stop.has_unsaved_steps()", body, signal.SIGTERM) == (75, "")


def test_a_second_signal_ends_a_run_that_hangs():
    status, _ = signalled("stop.has_unsaved_steps()", FOR_EVER, signal.SIGTERM, signal.SIGINT)
    assert status in (128 + signal.SIGTERM, 128 + signal.SIGINT)


INTERRUPTED = """
    import queue
    from train.stopping import Stopped
    try:
        with stop.interruptible():
            {inside}
    except Stopped:
        print("saved", stop.requested)
        sys.exit(75)"""


@pytest.mark.parametrize(
    "inside", ["time.sleep(60)", "queue.Queue().get()", "queue.Queue().get(timeout=60)"]
)
def test_a_wait_is_given_up_for_a_signal(inside):
    body = INTERRUPTED.format(inside=f'print("ready", flush=True); {inside}')
    program = PROGRAM.format(before="stop.has_unsaved_steps()", body=body)
    program = program.replace('    print("ready", flush=True)\n', "", 1)
    status, _, out = run_signalled(program, signal.SIGTERM)
    assert (status, out) == (75, "saved True\n")


def test_a_signal_before_a_wait_is_not_slept_over():
    stop = Stop()
    stop.request()
    with pytest.raises(Stopped), stop.interruptible():
        raise AssertionError("this must not be reached")


def test_handlers_are_put_back():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    wakeup = signal.set_wakeup_fd(-1)
    with stop_on_signal() as stop:
        assert not stop.requested
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(wakeup) == -1


def test_outside_the_main_thread_signals_are_left_alone():
    handler, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with stop_on_signal() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(handler, False)]
