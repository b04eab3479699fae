"""A thread that notices when a run hangs, and says where."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_HUNG = 1
# The first step may take so many times as long, because it is compiled, and so may evaluations.
FIRST = 4


class Watchdog:
    """Dumps the stacks of all threads when no step has ended for too long.

    The stacks go to stderr and to a file; each hang is reported once.

    Args:
      seconds: how long is too long, until the first `beat` and where it is `patient` `FIRST` times
        that; 0 never reports.
      path: the file; appended to.
      ends: end the process after a report, with status 1.
    """

    def __init__(self, seconds: float, path: Path, *, ends: bool = False):
        self._seconds, self._path, self._ends = seconds, path, ends
        self._step = 0
        self._limit = FIRST * seconds
        self._last: float | None = time.monotonic()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        if seconds:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def beat(self, step: int) -> None:
        """Says that `step` steps have been made."""
        with self._lock:
            self._step, self._last, self._limit = step, time.monotonic(), self._seconds

    @contextmanager
    def patient(self) -> Iterator[None]:
        """What is done inside may take `FIRST` times as long as a step."""
        with self._lock:
            before, self._limit = self._limit, FIRST * self._seconds
            self._last = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._limit, self._last = before, time.monotonic()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            with self._lock:
                waited = 0.0 if self._last is None else time.monotonic() - self._last
                step = self._step
                if waited < self._limit:
                    continue
                self._last = None  # said once; the next beat watches again
            self._report(step, waited)
            if self._ends:
                os._exit(EXIT_HUNG)

    def _report(self, step: int, waited: float) -> None:
        head = f"watchdog: no step has ended for {waited:.0f} s after step {step}; stacks:\n"
        with self._path.open("a+", encoding="utf-8") as file:
            before = file.tell()
            file.write(head)
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            # faulthandler writes to descriptors alone, and stderr may be none.
            file.seek(before)
            sys.stderr.write(file.read())
        sys.stderr.flush()
