"""What the processes of a job tell one another, through the service that JAX starts on process 0.

It works while a device computes, or waits for a process that will never come.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

# Seconds. What all processes wait for together may be the writing of a large file.
_LONGEST_WAIT = 3600
# A process that leaves gives the others so long to hear of it.
_GRACE = 10
# Seconds that process 0 stays after the others have said that they end.
_LAST = 1.0


class Team:
    """The processes that this one works with.

    Args:
      client: of the service on process 0.
      index: of this process.
      count: of all.
    """

    def __init__(self, client: Any, index: int, count: int):
        self.index, self.count = index, count
        self._client, self._leaving = client, False
        self._asked = 0  # questions; all processes ask the same ones in the same order
        # What is done when another process was asked to stop; in a thread.
        self.when_stopped: Callable[[], None] = lambda: None
        self._listener = threading.Thread(target=self._listen, name="team", daemon=True)
        self._listener.start()
        atexit.register(self.part)

    def wait(self, name: str) -> None:
        """Waits until all processes have come to the same place.

        Raises:
          RuntimeError: one of them died, or did not come within an hour.
        """
        self._client.wait_at_barrier(f"janus_jax/wait/{name}", _LONGEST_WAIT * 1000)

    def any(self, mine: bool) -> bool:
        """Whether the answer of any process is yes; the same everywhere. All have to ask.

        Args:
          mine: the answer of this process.

        Raises:
          RuntimeError: one of them died, or did not ask within an hour.
        """
        return bool(self.any_of("yes" if mine else ""))

    def any_of(self, mine: str) -> str:
        """What any of the processes has to say (empty: nothing); the same everywhere, as of `any`.

        Args:
          mine: what this process has to say; empty for nothing.
        """
        self._asked += 1
        key = f"janus_jax/any/{self._asked}"
        if mine:
            self._client.key_value_set(key, mine, allow_overwrite=True)
        self.wait("any")
        return self._try_get(key) or ""

    def of_first(self, value: str) -> str:
        """The value that process 0 has. All have to ask.

        Raises:
          RuntimeError: process 0 died, or did not ask within an hour.
        """
        self._asked += 1
        key = f"janus_jax/value/{self._asked}"
        if self.index == 0:
            self._client.key_value_set(key, value)
            return value
        return self._client.blocking_key_value_get(key, _LONGEST_WAIT * 1000)

    def add(self, name: str, number: int) -> int:
        """Adds to a sum over all processes, and returns it; nobody waits."""
        return self._client.key_value_increment(f"janus_jax/sum/{name}", number)

    def stop(self) -> None:
        """Tells the others that this process was asked to stop."""
        self._post(f"stop {self.index}")

    def leave(self, status: int) -> bool:
        """Tells the others to end, and waits until they have heard it; then `end` is to be called.

        Args:
          status: the exit status of all.

        Returns:
          Whether this process is the first to leave; if so, it has to say why.
        """
        try:
            self._client.key_value_set("janus_jax/leaving", str(self.index))
        except RuntimeError:  # another one leaves, or the service is gone
            return False
        self._leaving = True
        self._post(f"end {self.index} {status}")
        self._until_gone(range(1, self.count))
        return True

    def end(self, status: int) -> NoReturn:
        """Ends this process at once; process 0 has to end last."""
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"janus_jax/gone/{self.index}", "", allow_overwrite=True)
        if self.index == 0:
            self._until_gone(range(1, self.count))
            # They have said so just before they end, and JAX aborts who outlives process 0.
            time.sleep(_LAST)
        os._exit(status)

    def part(self) -> None:
        """An orderly end: waits for the others to be done as well.

        Also because the listener must not be in the midst of a call when Python ends.
        """
        import jax

        jax.distributed.shutdown()
        self._listener.join(_GRACE)

    def _until_gone(self, others: range) -> None:
        end = time.monotonic() + _GRACE
        for other in others:
            left = end - time.monotonic()
            if other != self.index and left > 0:
                try:
                    key = f"janus_jax/gone/{other}"
                    self._client.blocking_key_value_get(key, int(1000 * left) + 1)
                except RuntimeError:
                    return

    def _try_get(self, key: str) -> str | None:
        try:
            return self._client.key_value_try_get(key)
        except RuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def _post(self, event: str) -> None:
        """Adds to what all processes hear, each event once and in the same order."""
        for number in itertools.count():
            try:
                self._client.key_value_set(f"janus_jax/event/{number}", event)
                return
            except RuntimeError as error:
                if "ALREADY_EXISTS" not in str(error):
                    return  # the service is gone, and with it everybody else

    def _listen(self) -> None:
        number = 0
        while True:
            try:
                key = f"janus_jax/event/{number}"
                event, by, *rest = self._client.blocking_key_value_get(key, 600_000).split()
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue
                return  # an orderly end; and where process 0 has died, JAX ends this one
            number += 1
            if int(by) == self.index:
                continue
            if event == "stop":
                self.when_stopped()
            elif not self._leaving:
                self.end(int(rest[0]))
