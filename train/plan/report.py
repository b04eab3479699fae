"""The figures of a plan."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, get_args

import jax

from janus_jax.nn.segments import BLOCK
from train.config import Remat
from train.plan import costs, hlo
from train.plan.memory import activations, estimate, largest_replicated
from train.plan.program import CompiledStep
from train.plan.step import PlannedStep
from train.plan.work import step_work

SECONDS_A_DAY = 86_400

# Products of [T, H] by [H, T] in each attention kernel: scores and sum forward; backward the scores
# again, the gradient of the weights, and one for each gradient that the kernel makes.
KERNEL_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
# Rate of the kernels as a share of the peak: an assumption, not a measurement.
KERNEL_RATE = 0.5


def abstract_figures(step: PlannedStep, mfu: float) -> dict[str, Any]:
    """What follows from the config alone.

    Args:
      step: the step.
      mfu: the utilisation that days are stated for.
    """
    config, topology = step.config, step.topology
    memory = estimate(
        config, step.model, step.layout, step.state, step.shardings, step.batch, step.sizes
    )
    work = step_work(config, step.model, step.layout)
    seconds = work.dense / (mfu * topology.peak_flops * topology.devices)
    return {
        "preset": config.name,
        "topology": topology.name,
        "devices": topology.devices,
        "mesh": {axis: size for axis, size in step.sizes.items() if size > 1},
        "remat": config.remat,
        "accumulate": config.accumulate,
        "parameters": _count(step.state.trainable) + _count(step.state.frozen),
        "trainable_parameters": _count(step.state.trainable),
        "rows_per_step": step.layout.rows,
        "tokens_per_step": step.layout.tokens,
        "group": {
            "rows": step.layout.shape.rows,
            "pictures": step.layout.shape.pictures,
            "drawings": step.layout.shape.drawings,
            "text_targets": step.layout.shape.text_targets,
        },
        "flops_per_step": work.dense,
        "flops_per_step_by_part": work.parts,
        "attention_flops_per_step": work.attention,
        "model_flops_per_device": work.dense / topology.devices,
        "steps": config.steps,
        "assumed_mfu": mfu,
        "days_at_assumed_mfu": config.steps * seconds / SECONDS_A_DAY,
        "estimated_bytes_per_device": {**asdict(memory), "total": memory.total},
        "activation_bytes_by_remat": {
            remat: activations(config, step.model, step.layout, step.sizes, remat)
            for remat in get_args(Remat)
        },
        "hbm_capacity_bytes": topology.hbm_bytes,
        "optimizer_bytes": _bytes(step.state.opt_state),
        "largest_replicated_param_bytes": largest_replicated(step.state, step.shardings),
    }


def compiled_figures(step: PlannedStep, compiled: CompiledStep) -> dict[str, Any]:
    """What the compiled program says; see docs/plan.md for each figure's method."""
    topology, layout = step.topology, step.layout
    program = hlo.computations(compiled.text)
    work = step_work(step.config, step.model, layout)
    model_flops = work.dense / topology.devices
    cycles = costs.cycles(program)
    seconds = cycles / topology.chip.clock_hz
    kernels = costs.custom_calls(program)
    kernel_flops = sum(n * kernel_call_flops(step, name) for name, n in kernels.items())
    kernel_seconds = kernel_flops / (KERNEL_RATE * topology.peak_flops)
    step_seconds = seconds + kernel_seconds
    products = costs.dot_flops(program)
    moved = costs.collectives(program)
    return {
        "estimated_cycles": cycles,
        "model_flops_per_device": model_flops,
        "modelled_dense_mfu": model_flops / (topology.peak_flops * seconds),
        "modelled_mfu": (model_flops + work.attention / topology.devices)
        / (topology.peak_flops * step_seconds),
        "modelled_step_seconds": step_seconds,
        "modelled_days": step.config.steps * step_seconds / SECONDS_A_DAY,
        "dot_flops_over_model_flops": products / model_flops,
        "dot_flops_per_token": products * topology.devices / layout.tokens,
        "hbm_bytes_per_device": compiled.hbm_bytes,
        "hbm_capacity_bytes": topology.hbm_bytes,
        "loss_temp_bytes": compiled.loss_temp_bytes,
        "collective_bytes": moved.bytes,
        "async_collective_fraction": moved.async_fraction,
        "collectives": moved.count,
        "custom_calls": dict(kernels),
        "custom_call_seconds": kernel_seconds,
        "loops_of_unknown_length": costs.unknown_loops(program),
        **needless_buffers(step, program),
        "compile_seconds": compiled.seconds,
        "tokens_per_step": layout.tokens,
        "largest_replicated_param_bytes": largest_replicated(step.state, step.shardings),
        "optimizer_bytes": _bytes(step.state.opt_state),
    }


def needless_buffers(step: PlannedStep, program: hlo.Program) -> dict[str, Any]:
    """Arrays of scores or logits that the step is written never to make; both lists are empty.

    Args:
      step: the step.
      program: what it was compiled to.
    """
    llm, sizes = step.model.llm, step.sizes
    heads, words = (n // sizes["tensor"] for n in (llm.num_heads, llm.vocab_size))
    # Whole, and as a device keeps its part.
    widths = {llm.width, llm.width // sizes["fsdp"]}
    return {
        "score_buffers": costs.score_buffers(program, step.layout.length, heads, llm.width),
        "logit_buffers": costs.logit_buffers(program, step.config.loss_chunk, words, widths),
    }


def kernel_call_flops(step: PlannedStep, name: str) -> float:
    """FLOPs of one run of an attention kernel on one device.

    A kernel works on the blocks of keys that causality leaves: (n + 1) / (2 n) of them for rows of
    n blocks. Blocks that segments alone would leave out are worked on.

    Args:
      step: the step.
      name: the kernel's, such as `splash_mha_fwd_segmented_residuals`.

    Raises:
      ValueError: a kernel that is not known here.
    """
    kinds = [kind for kind in KERNEL_PRODUCTS if f"_{kind}_" in f"{name}_"]
    if len(kinds) != 1:
        raise ValueError(f"custom call {name} is no attention kernel of janus_jax.nn.segments")
    layout, llm = step.layout, step.model.llm
    queries = layout.length // step.sizes["sequence"]
    blocks = layout.length // math.gcd(BLOCK, queries)
    pairs = queries * layout.length * (blocks + 1) / (2 * blocks)
    heads = llm.num_heads // step.sizes["tensor"]
    return KERNEL_PRODUCTS[kinds[0]] * 2 * pairs * llm.head_dim * heads * layout.shape.rows


def fits(figures: dict[str, Any]) -> bool:
    """Whether the step fits into a device's memory: as compiled, or else as estimated."""
    needed = figures.get("hbm_bytes_per_device", figures["estimated_bytes_per_device"]["total"])
    return needed <= figures["hbm_capacity_bytes"]


def text(figures: dict[str, Any]) -> str:
    """The figures for reading, with units."""
    f = figures
    memory = f["estimated_bytes_per_device"]
    mesh = ",".join(f"{axis}={size}" for axis, size in f["mesh"].items()) or "one device"
    lines = [
        f"{f['preset']} on {f['topology']}: {f['devices']} devices as {mesh}",
        f"  parameters        {f['parameters'] / 1e9:.3f} B, of which "
        f"{f['trainable_parameters'] / 1e9:.3f} B train",
        f"  step              {f['rows_per_step']} rows, {f['tokens_per_step']:,} tokens, "
        f"{f['flops_per_step']:.3e} FLOPs, in {f['accumulate']} micro-steps",
        f"  run               {f['steps']:,} steps, {f['days_at_assumed_mfu']:.1f} days at "
        f"{f['assumed_mfu']:.0%} MFU",
        f"  largest parameter that every device holds whole: "
        f"{f['largest_replicated_param_bytes'] / 1e6:.2f} MB",
        "  memory of a device, estimated, GB:",
        *(f"    {name:14s}{size / 1e9:8.2f}" for name, size in memory.items()),
        f"    {'of':14s}{f['hbm_capacity_bytes'] / 1e9:8.2f}",
        "  activations by --remat, GB: "
        + ", ".join(f"{k} {v / 1e9:.2f}" for k, v in f["activation_bytes_by_remat"].items()),
    ]
    if "estimated_cycles" in f:
        lines += [
            "  compiled (the compiler's own model of the chip, not measured):",
            f"    cycles a step             {f['estimated_cycles']:,}",
            f"    modelled dense MFU        {f['modelled_dense_mfu']:.1%}",
            f"    with attention            {f['modelled_mfu']:.1%}, "
            f"{f['modelled_step_seconds']:.3f} s a step, {f['modelled_days']:.1f} days",
            f"    dot FLOPs / model FLOPs   {f['dot_flops_over_model_flops']:.3f}",
            f"    memory of a device        {f['hbm_bytes_per_device'] / 1e9:.2f} GB",
            f"    temporaries of the loss   {f['loss_temp_bytes'] / 1e9:.3f} GB",
            f"    collectives               {f['collective_bytes'] / 1e9:.1f} GB a device, "
            f"{f['async_collective_fraction']:.0%} asynchronous",
            f"    compile time              {f['compile_seconds']:.0f} s",
        ]
    return "\n".join(lines)


def refusal(step: PlannedStep, figures: dict[str, Any]) -> str:
    """Why a step does not fit, with its largest numbers."""
    capacity = figures["hbm_capacity_bytes"] / 1e9
    name = f"{step.config.name} on {step.topology.name}"
    if "hbm_bytes_per_device" in figures:
        needed = figures["hbm_bytes_per_device"] / 1e9
        return f"{name} needs {needed:.1f} GB of memory a device, and it has {capacity:.1f} GB"
    parts = dict(figures["estimated_bytes_per_device"])
    total = parts.pop("total") / 1e9
    largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    listed = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in largest)
    return (
        f"{name} needs about {total:.1f} GB of memory a device ({listed}), "
        f"and it has {capacity:.1f} GB"
    )


def _count(tree: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
