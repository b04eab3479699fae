"""Settings of how a run is watched and guarded; nothing heavy is imported here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from janus_jax.errors import InputError


@dataclass(frozen=True)
class GuardConfig:
    """The policy for bad numbers (`train.guard` says what they are).

    Attributes:
      policy: `skip` a bad step, or `stop` the run at the first one.
      spike_factor: a gradient norm of more than so many times the usual one is bad; 0 allows any.
      memory: good steps that the usual norm is taken over.
      settle: good steps before which nothing is a spike.
      max_skipped: bad steps in a row that end the run.
    """

    policy: Literal["skip", "stop"] = "skip"
    spike_factor: float = 10.0
    memory: int = 100
    settle: int = 20
    max_skipped: int = 10

    def __post_init__(self) -> None:
        """Refuses values that mean nothing.

        Raises:
          InputError: naming the flag, its value and what is allowed.
        """
        if not (self.spike_factor == 0 or 1 < self.spike_factor < float("inf")):
            raise InputError(f"--guard.spike-factor {self.spike_factor}", "above 1, or 0 for none")
        for name in ("memory", "settle", "max_skipped"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"--guard.{name.replace('_', '-')} {value}", "at least 1")

    @property
    def limit(self) -> int:
        """Bad steps in a row that end the run."""
        return 1 if self.policy == "stop" else self.max_skipped


@dataclass(frozen=True)
class WatchConfig:
    """Who is told of a run, beside `metrics.jsonl`.

    Attributes:
      tensorboard: write event files to the run directory's `tensorboard/`.
      wandb: name of the Weights & Biases project to report to; empty for none.
      watchdog_seconds: dump the stacks of all threads when no step ends for so long, the first one
        or an evaluation for four times as long; 0 for never.
      watchdog_ends: end the process then, with status 1, for a scheduler to start it again.
    """

    tensorboard: bool = False
    wandb: str = ""
    watchdog_seconds: float = 0.0
    watchdog_ends: bool = False

    def __post_init__(self) -> None:
        """Refuses values that mean nothing.

        Raises:
          InputError: naming the flag, its value and what is allowed.
        """
        if not 0 <= self.watchdog_seconds < float("inf"):
            raise InputError(f"--watch.watchdog-seconds {self.watchdog_seconds}", "at least 0")


@dataclass(frozen=True)
class ProfileConfig:
    """Which steps are profiled.

    Attributes:
      steps: `FIRST:LAST`, counted from 1, both among them; empty for none. The trace goes to the
        run directory's `profile/`, for TensorBoard or xprof.
    """

    steps: str = ""

    def __post_init__(self) -> None:
        """Refuses anything else.

        Raises:
          InputError: not that form.
        """
        self.window()

    def window(self) -> tuple[int, int] | None:
        """First and last step, or None.

        Raises:
          InputError: not that form.
        """
        if not self.steps:
            return None
        found = re.fullmatch(r"(\d+):(\d+)", self.steps)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(
                f"--profile.steps {self.steps}", "FIRST:LAST, such as 10:15, counted from 1"
            )
        return int(found[1]), int(found[2])
