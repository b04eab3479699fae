"""Everything that watches a run, behind one object that the loop talks to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from janus_jax.hosts import is_first, own_file
from train.evaluation import Evaluation
from train.guard import BadSteps
from train.metrics import MetricsLog
from train.watch.config import GuardConfig, ProfileConfig, WatchConfig
from train.watch.goodput import Goodput
from train.watch.loggers import open_loggers
from train.watch.profiling import Profiler
from train.watch.watchdog import Watchdog


class Watch:
    """The metrics file and other loggers, bad steps, lost time, profile and watchdog of a run.

    Args:
      directory: the run directory.
      goodput: the account of the run's time, begun with the process.
      name: the run's name.
      settings: the run's config, for the loggers.
      start: step the run starts at.
      keep_evaluation: keep what was written of its evaluation.
      steps: total steps.
      ids: names of the samples of a step, counted from 0.
      guard: the policy for bad numbers.
      watch: loggers and watchdog.
      profile: steps to profile.

    Raises:
      InputError: a package that is asked for is not installed.
    """

    def __init__(
        self,
        directory: Path,
        goodput: Goodput,
        *,
        name: str,
        settings: Mapping[str, Any],
        start: int,
        keep_evaluation: bool,
        steps: int,
        ids: Callable[[int], Sequence[str]],
        guard: GuardConfig,
        watch: WatchConfig,
        profile: ProfileConfig,
    ):
        self.goodput = goodput
        self._loggers = []
        if is_first():
            self._loggers = open_loggers(watch, directory, start=start, name=name, config=settings)
        self._log = MetricsLog(
            directory / "metrics.jsonl" if is_first() else None,
            steps=steps,
            start=start,
            keep_evaluation=keep_evaluation,
            title=name,
            loggers=self._loggers,
        )
        self._bad_steps = BadSteps(directory / "bad_steps.jsonl", guard, ids, start)
        self._profiler = Profiler(
            profile, directory / "profile", functools.partial(goodput.lost, "profile")
        )
        self._watchdog = Watchdog(
            watch.watchdog_seconds, own_file(directory / "stacks.txt"), ends=watch.watchdog_ends
        )
        self._values: dict[str, Any] = {}
        self._stepped = False

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """The time inside is lost, unless the devices are still busy at its end."""
        with self.goodput.lost("data_wait", unless=self._busy):
            yield

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around starting a step, counted from 1; the first one is compiled."""
        self._profiler.before(number)
        with nullcontext() if self._stepped else self.goodput.lost("compile"):
            yield
        if not self._stepped:
            self.goodput.stepping()
            self._stepped = True

    def stepped(self, number: int, values: Mapping[str, Any], *, log: bool) -> None:
        """Takes the (still computing) metrics of a step that has been started.

        Args:
          number: of the step, counted from 1.
          values: its metrics.
          log: write them to the metrics file.

        Raises:
          RunFailed: the step before was one bad step too many.
        """
        self._values = self._bad_steps.add(number, values)
        self._profiler.after(number, self._values)
        self._watchdog.beat(number)
        if log:
            self._log.add(number, self._values)
            self.goodput.write(number)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Around an evaluation, which may take longer than a step."""
        self._log.flush()
        with self._watchdog.patient(), self.goodput.lost("evaluation"):
            yield

    def evaluated(self, step: int, found: Evaluation) -> None:
        """Writes what an evaluation found, and hands it to the loggers."""
        if found.losses:
            self._log.write({"step": step, **found.losses})
        if self._loggers and (found.sheet or found.texts):
            sheet = np.asarray(Image.open(found.sheet)) if found.sheet else None
            self._log.samples(step, sheet, found.texts)

    @contextmanager
    def save(self, step: int) -> Iterator[dict[str, float]]:
        """Around a save; gives the step's metrics.

        A checkpoint says that everything up to its step has been written.

        Raises:
          RunFailed: the step was one bad step too many.
        """
        self._bad_steps.flush()
        self._log.flush()
        with self.goodput.lost("checkpoint"):
            yield {k: float(v) for k, v in jax.device_get(self._values).items()}
        self.goodput.saved(step)
        self._watchdog.beat(step)

    def close(self) -> None:
        """Writes what is pending.

        Raises:
          RunFailed: the last step was one bad step too many.
        """
        with ExitStack() as stack:
            for part in (self._log, self._watchdog, self._profiler):
                stack.callback(part.close)
            self._bad_steps.flush()

    def _busy(self) -> bool:
        return any(not v.is_ready() for v in self._values.values())
