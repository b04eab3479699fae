"""Where an answer ends before the model ends it: texts that stop it, or a rule of the caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from janus_jax.errors import InputError

Stop = Sequence[str] | Callable[[str], bool]
"""Texts before which an answer ends, or a function of the answer so far that says to end it."""


class StopText:
    """Lets a stream of text through up to the first stop text, which itself is never shown.

    Text that may turn out to be the beginning of a stop text is held back until that is certain.

    Attributes:
      stopped: a stop was met; nothing more comes through.
    """

    def __init__(self, stop: Stop = ()):
        """Starts a stream.

        Args:
          stop: texts, or a function. The function sees the whole answer after each piece and keeps
            what made it say stop.

        Raises:
          InputError: a stop text is empty or no text.
        """
        self._rule = stop if callable(stop) else None
        texts: Any = () if callable(stop) else stop
        if isinstance(texts, str) or not all(isinstance(t, str) and t for t in texts):
            raise InputError(f"stop is {stop!r}", "a list of texts, none empty, or a function")
        self._texts: tuple[str, ...] = tuple(texts)
        self._held, self._shown = "", ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Adds a piece; returns what may be shown now, often empty."""
        if self.stopped:
            return ""
        self._held += piece
        found = [at for text in self._texts if (at := self._held.find(text)) >= 0]
        if found:
            self.stopped = True
            return self._show(min(found))
        shown = self._show(len(self._held) - self._uncertain())
        if self._rule is not None and piece and self._rule(self._shown):
            self.stopped = True
        return shown

    def finish(self) -> str:
        """What was held back, if no stop was met."""
        return "" if self.stopped else self._show(len(self._held))

    def _show(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        self._shown += shown
        return shown

    def _uncertain(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max((len(text) for text in self._texts), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-length:]) for text in self._texts):
                return length
        return 0
