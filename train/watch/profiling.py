"""A trace of some steps, for TensorBoard's profile plug-in or xprof."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax

from train.watch.config import ProfileConfig


class Profiler:
    """Traces the steps of `--profile.steps`.

    Args:
      config: which steps.
      directory: gets `plugins/profile/TIME/`.
      lost: entered while the trace is begun and written, which may take longer than the steps.
    """

    def __init__(
        self,
        config: ProfileConfig,
        directory: Path,
        lost: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self._window = config.window()
        self._directory = directory
        self._lost = lost
        self._running = False

    def before(self, step: int) -> None:
        """Called before `step`, counted from 1, is started."""
        if self._window and self._window[0] <= step <= self._window[1] and not self._running:
            with self._lost():
                jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """Called when `step` has been started.

        Args:
          step: counted from 1.
          results: arrays that are made by the step; after the last step they are waited for.
        """
        if self._running and self._window and step >= self._window[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes what has been traced of a run that ends early."""
        if self._running:
            self._running = False
            with self._lost():
                jax.profiler.stop_trace()
