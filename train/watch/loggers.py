"""Where the numbers and samples of a run go, beside its own files.

`metrics.jsonl` is always written (`train.metrics`); TensorBoard and Weights & Biases are asked for,
and their packages are imported only then.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from janus_jax.errors import InputError
from train.watch.config import WatchConfig


class Logger(Protocol):
    """A place that numbers and samples of a run are sent to."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after `step` steps."""
        ...

    def samples(
        self, step: int, sheet: np.ndarray | None, texts: Mapping[str, Sequence[str]]
    ) -> None:
        """Samples of what the model can do.

        Args:
          step: steps made.
          sheet: uint8 [H, W, 3], rows of pictures; None where it draws none.
          texts: lists of texts by title: what the pictures are of, and answers.
        """
        ...

    def close(self) -> None:
        """Sends what is pending."""
        ...


class TensorBoard:
    """Event files, which `tensorboard --logdir` shows.

    Args:
      directory: where the files go; a resumed run adds one.
      start: step the run starts at; TensorBoard then hides what a killed run wrote of later steps.

    Raises:
      InputError: tensorboardX is not installed.
    """

    def __init__(self, directory: Path, start: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError(
                "--watch.tensorboard needs tensorboardX, which is not installed",
                fix='pip install -e ".[logging]" in the checkout',
            ) from error
        purge = start + 1 if start else None
        self._writer = SummaryWriter(str(directory), purge_step=purge, flush_secs=10)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def samples(
        self, step: int, sheet: np.ndarray | None, texts: Mapping[str, Sequence[str]]
    ) -> None:
        """See `Logger`."""
        if sheet is not None:
            self._writer.add_image("samples", sheet, step, dataformats="HWC")
        for title, found in texts.items():
            self._writer.add_text(title, "\n".join(f"- {text}" for text in found), step)

    def close(self) -> None:
        """See `Logger`."""
        self._writer.close()


class WandB:
    """A run in a Weights & Biases project.

    Args:
      project: its name.
      directory: the run directory; keeps the run's id, so that a resumed run goes on in it.
      name: the run's name.
      config: the run's settings.

    Raises:
      InputError: wandb is not installed.
    """

    def __init__(self, project: str, directory: Path, *, name: str, config: Mapping[str, Any]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(
                f"--watch.wandb {project} needs wandb, which is not installed",
                fix="pip install wandb",
            ) from error
        self._wandb = wandb
        remembered = directory / "wandb.id"
        if not remembered.exists():
            remembered.write_text(secrets.token_hex(8) + "\n", encoding="utf-8")
        self._run = wandb.init(
            project=project,
            name=name,
            id=remembered.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(directory),
            config=dict(config),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        self._run.log(dict(values), step=step)

    def samples(
        self, step: int, sheet: np.ndarray | None, texts: Mapping[str, Sequence[str]]
    ) -> None:
        """See `Logger`."""
        shown: dict[str, Any] = {
            title: self._wandb.Table(columns=["text"], data=[[text] for text in found])
            for title, found in texts.items()
        }
        if sheet is not None:
            shown["samples"] = self._wandb.Image(sheet)
        self._run.log(shown, step=step)

    def close(self) -> None:
        """See `Logger`."""
        self._run.finish()


def open_loggers(
    watch: WatchConfig, directory: Path, *, start: int, name: str, config: Mapping[str, Any]
) -> list[Logger]:
    """The loggers that a run asks for.

    Args:
      watch: which.
      directory: the run directory.
      start: step the run starts at.
      name: the run's name.
      config: the run's settings.

    Raises:
      InputError: the package of one is not installed.
    """
    loggers: list[Logger] = []
    if watch.tensorboard:
        loggers.append(TensorBoard(directory / "tensorboard", start))
    if watch.wandb:
        loggers.append(WandB(watch.wandb, directory, name=name, config=config))
    return loggers
