"""`janus-jax train`: presets from the command line."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from janus_jax.cli.parsing import parse
from janus_jax.errors import InputError
from janus_jax.hosts import HostsConfig, connect, is_first
from train.arguments import parse_preset
from train.config import TrainConfig
from train.presets import EMOJI_RECIPE, PRESETS
from train.stopping import stop_on_signal

RECIPES = {"emoji": EMOJI_RECIPE}

USAGE = """usage: janus-jax train PRESET [--run-dir DIR] [--resume [--fall-back] | --overwrite]
                              [--hosts.FIELD VALUE]... [--FIELD VALUE]...

Trains a named preset. `janus-jax train PRESET --help` says what it needs, and every field that can
be set. A run lives in DIR (default runs/PRESET); it is stopped by SIGTERM or Ctrl-C, which saves
its state and exits with status 75, and goes on with --resume; with --fall-back from the checkpoint
before, where the newest is damaged. Several hosts train together when each of them is given the
same command: on TPU pods, under SLURM and on GKE that is all; elsewhere --hosts.coordinator
HOST:PORT, --hosts.processes and --hosts.process name them (docs/training.md).

recipes (all their runs in order, each in its own folder below DIR; what is done is left alone, and
what was stopped goes on, with --resume and without):
  emoji          the shipped model, about two hours on 2 cores

presets:
{presets}

examples:
  janus-jax train emoji --run-dir runs
  janus-jax train emoji-stage2 --run-dir runs/emoji-stage2 --resume
  janus-jax train emoji-vq --steps 200 --optimizer.learning-rate 3e-4
  janus-jax train finetune-lora --init deepseek-ai/Janus-Pro-1B --data my.jsonl --run-dir runs/mine
"""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Where and how to run, beside the preset's own fields.

    Attributes:
      run_dir: directory of the run; default runs/PRESET.
      resume: go on where a run with the same config stopped.
      overwrite: delete what the run that is there has written.
      fall_back: with --resume: where the newest checkpoint is damaged, set it aside and go on from
        the one before.
      hosts: which processes train together.
    """

    run_dir: Path | None = None
    resume: bool = False
    overwrite: bool = False
    fall_back: bool = False
    hosts: HostsConfig = dataclasses.field(default_factory=HostsConfig)


def main(argv: list[str]) -> int:
    """Parses the arguments after `janus-jax train` and runs.

    Returns:
      The exit status: 0 done, 75 stopped with its state saved.

    Raises:
      InputError: an unknown preset, flag or value, or an unusable run directory.
    """
    if not argv or argv[0] in ("-h", "--help"):
        listing = "\n".join(
            f"  {name:19s} {' '.join(preset.trainable)}; "
            + (f"{preset.steps} steps" if preset.steps else f"{preset.epochs:g} passes")
            for name, preset in PRESETS.items()
        )
        print(USAGE.format(presets=listing))
        return 0
    name, rest = argv[0], argv[1:]
    if name in RECIPES:
        flags = parse(Flags, rest, prog=f"janus-jax train {name}")
        if flags.resume and flags.overwrite:
            raise InputError("--resume and --overwrite exclude each other", "one of them")
        root = flags.run_dir or Path("runs")
        _connect(flags.hosts)
        return run_recipe(RECIPES[name], root, overwrite=flags.overwrite, fall_back=flags.fall_back)
    flags, config = parse_preset(Flags(), argv, PRESETS, command="train", others=(*RECIPES,))
    _connect(flags.hosts)
    from train.loop import run

    return run(
        config,
        flags.run_dir or Path("runs") / name,
        resume=flags.resume,
        overwrite=flags.overwrite,
        fall_back=flags.fall_back,
    )


def _connect(hosts: HostsConfig) -> None:
    """Meets the other processes; a signal that comes meanwhile means what it means in a run."""
    with stop_on_signal():
        connect(hosts)
        import train.loop  # noqa: F401  (takes seconds)


def run_recipe(
    recipe: tuple[TrainConfig, ...], root: Path, *, overwrite: bool, fall_back: bool = False
) -> int:
    """Makes the runs of a recipe in order; the same command goes on after a stop.

    Args:
      recipe: the presets.
      root: holds the run directories; finished runs in it are skipped.
      overwrite: delete and make all runs again.
      fall_back: go on from the checkpoint before the newest where that is damaged.

    Returns:
      The exit status: 0 done, 75 stopped with the state of the current run saved.

    Raises:
      InputError: a run directory that cannot be used.
    """
    from train.loop import run

    for config in recipe:
        run_dir = root / config.name
        resume = not overwrite and (run_dir / "config.json").exists()
        flags = dict(resume=resume, overwrite=overwrite, fall_back=fall_back and resume)
        status = run(config, run_dir, **flags)
        if status:
            return status
    if is_first():
        print(f"the model is in {root / recipe[-1].name / 'model'}", file=sys.stderr)
    return 0
