"""Stopping a run from outside without losing steps: SIGTERM (a scheduler) and SIGINT (Ctrl-C)."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from janus_jax.hosts import end, leave, team
from janus_jax.team import Team

EXIT_PREEMPTED = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What wakes a process of several when another one was asked to stop; it never counts as a second.
_RELAYED = signal.SIGUSR1


class Stopped(Exception):
    """Raised by a signal inside `Stop.interruptible`."""


class Stop:
    """What the training loop and the signals tell one another, and the other processes.

    Args:
      team: the processes that stop together with this one, if there are any.
    """

    def __init__(self, team: Team | None = None):
        self._team = team
        self._event = threading.Event()
        self._unsaved = False
        self._interruptible = False

    @property
    def requested(self) -> bool:
        """Whether somebody asked the run to stop; the loop then saves and returns."""
        return self._event.is_set()

    def agreed(self) -> bool:
        """Whether all processes stop here: any of them was asked to. All ask before each step.

        This takes about a millisecond and no device, which may be at work on the step before.
        """
        if self._team is None:
            return self.requested
        return self._team.any(self.requested)

    def request(self) -> None:
        """Asks the loop to stop after the step it is in."""
        self._event.set()

    @contextmanager
    def interruptible(self, *, together: bool = False) -> Iterator[None]:
        """What is inside is given up for a signal: a wait for data or an evaluation may take long.

        Only for what leaves the state of the run whole at any moment.

        Args:
          together: several processes are inside together, and none can leave the others; then a
            signal has to wait.

        Raises:
          Stopped: a signal has come, before or inside. It ends Python code at once, and a call into
            a library when that returns.
        """
        try:
            self._interruptible = not (together and self._team)
            if self._interruptible and self.requested:
                raise Stopped
            yield
        finally:
            self._interruptible = False

    def has_unsaved_steps(self) -> None:
        """Says that steps were made that only a checkpoint can keep.

        Until then (reading data, restoring, the first compilation) a signal ends the process at
        once, with the same status as after saving: there is nothing to save, and those phases
        can take longer than a scheduler waits.
        """
        self._unsaved = True

    def _handle(self, number: int, frame: object) -> None:
        """Runs in the main thread, between two of Python's instructions."""
        self.request()
        if self._interruptible:
            self._interruptible = False
            raise Stopped

    def _heard(self) -> None:
        """Another process was asked to stop; runs in a thread."""
        self.request()
        # Only a signal ends a wait of the main thread.
        signal.pthread_kill(threading.main_thread().ident or 0, _RELAYED)

    def _on_signal(self, number: int, count: int) -> None:
        """Runs in a thread of its own, at once."""
        if count > 1:
            # Whoever asks twice wants out now. Checkpoints appear by renaming, so nothing half
            # written becomes visible.
            os._exit(128 + number)
        if not self._unsaved:
            if leave(EXIT_PREEMPTED):
                print("stopped before the first step; nothing to save", file=sys.stderr, flush=True)
            end(EXIT_PREEMPTED)
            os._exit(EXIT_PREEMPTED)
        if self._team is not None:
            self._team.stop()


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Handles SIGTERM and SIGINT while inside; outside the main thread it handles nothing.

    Yields:
      The `Stop` that the signals set.
    """
    stop = Stop(team())
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # Python runs handlers between two of its own instructions, so a long compilation would delay
    # them. The wake-up pipe is written at once, and a thread of ours reads it.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        count = 0
        while data := os.read(reader, 1):
            if data[0] in _SIGNALS:
                count += 1
                stop._on_signal(data[0], count)
        os.close(reader)

    threading.Thread(target=watch, name="stop-signals", daemon=True).start()
    handlers = {n: signal.signal(n, stop._handle) for n in (*_SIGNALS, _RELAYED)}
    if stop._team is not None:
        stop._team.when_stopped = stop._heard
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        if stop._team is not None:
            stop._team.when_stopped = lambda: None
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if stop._team is not None:
            signal.signal(_RELAYED, signal.SIG_IGN)  # one may be on its way
        os.close(writer)
