"""`janus-jax plan`: the command line."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from janus_jax.config import get_config
from janus_jax.errors import InputError
from train.arguments import parse_preset
from train.config import TrainConfig
from train.plan import libtpu
from train.plan.chips import parse_topology
from train.plan.layout import Lengths
from train.presets import PRESETS

USAGE = """usage: janus-jax plan PRESET [--topology T] [--compile] [--json] [--FIELD VALUE]...

What a preset needs of a pod: memory a device, FLOPs, tokens and days. It works on any machine. With
--compile the real step goes through the real TPU compiler, which says what it makes of it; no TPU
is needed, only its compiler (docs/plan.md). A step that does not fit is refused with status 2.

presets:
{presets}

examples:
  janus-jax plan janus-pro-7b-stage2 --topology v5p:4x4x4
  janus-jax plan janus-pro-1b-stage2 --topology v5e:16x16 --compile --json --dump-hlo hlo
  janus-jax plan janus-pro-1b-stage3 --topology v6e:8x8 --mesh fsdp=all --remat full
"""


@dataclasses.dataclass(frozen=True)
class Flags:
    """What to plan for, beside the preset's own fields.

    Attributes:
      topology: a slice of a pod: v4, v5e, v5p, v6e or tpu7x, and its shape.
      compile: compile the step for it and read the result.
      dump_hlo: folder that the compiled program's text is kept in.
      mfu: utilisation that the days of the run are stated for.
      lengths: of the samples that fill the rows.
      json: print one line of JSON.
    """

    topology: str = ""
    compile: bool = False
    dump_hlo: Path | None = None
    mfu: float = 0.5
    lengths: Lengths = Lengths()  # noqa: RUF009  (frozen)
    json: bool = False


def main(argv: list[str]) -> int:
    """Parses the arguments after `janus-jax plan`, plans and prints.

    Returns:
      The exit status, 0.

    Raises:
      InputError: an unknown preset, flag or value, a missing compiler, or a step that does not fit.
    """
    # What a fine-tuning run is follows from its data.
    stages = {name: preset for name, preset in PRESETS.items() if preset.objective == "janus"}
    presets = {name: preset for name, preset in stages.items() if not preset.fit_to_data}
    if not argv or argv[0] in ("-h", "--help"):
        listing = "\n".join(
            f"  {name:20s} {' '.join(preset.trainable)}" for name, preset in presets.items()
        )
        print(USAGE.format(presets=listing))
        return 0
    flags, config = parse_preset(Flags(), argv, presets, command="plan")
    return plan(config, flags, " ".join(("plan", *argv)))


def plan(config: TrainConfig, flags: Flags, command: str) -> int:
    """Plans a preset and prints the figures.

    Args:
      config: the preset.
      flags: what for.
      command: the command line, for messages.

    Raises:
      InputError: see `main`.
    """
    if not 0 < flags.mfu <= 1:
        raise InputError(f"--mfu {flags.mfu}", "above 0, at most 1")
    if flags.dump_hlo is not None and not flags.compile:
        raise InputError("--dump-hlo keeps the compiled program", fix="add --compile")
    topology = parse_topology(flags.topology or _usual(config))
    if flags.compile:
        libtpu.prepare(command)
    from train.plan import report
    from train.plan.step import plan_step

    step = plan_step(config, topology, flags.lengths)
    figures = report.abstract_figures(step, flags.mfu)
    if flags.compile:
        from train.plan.program import compile_step

        compiled = compile_step(step)
        if flags.dump_hlo is not None:
            flags.dump_hlo.mkdir(parents=True, exist_ok=True)
            file = flags.dump_hlo / f"{config.name}-{topology.name.replace(':', '-')}.hlo"
            file.write_text(compiled.text, encoding="utf-8")
            print(f"the program's text is in {file}", file=sys.stderr)
        figures |= report.compiled_figures(step, compiled)
    figures["fits"] = report.fits(figures)
    print(json.dumps(figures) if flags.json else report.text(figures))
    if not figures["fits"]:
        raise InputError(
            report.refusal(step, figures),
            fix="choose another --remat, more --accumulate, or a larger --topology",
        )
    return 0


def _usual(config: TrainConfig) -> str:
    """The slice that the presets of a size are made for."""
    wide = get_config(config.model).llm.width > 2048
    return "v5p:4x4x4" if wide else "v5e:16x16"
