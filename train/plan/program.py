"""The real step through the real TPU compiler, for a pod that is not here."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from janus_jax.errors import InputError
from train.plan.chips import compiler_options
from train.plan.libtpu import devices_of
from train.plan.step import PlannedStep, on_devices

# Loss positions of each head, at which the loss' own memory is measured.
LOSS_POSITIONS = 16_384


@dataclass(frozen=True)
class CompiledStep:
    """What the compiler gives.

    Attributes:
      text: optimised HLO of one device.
      hbm_bytes: arguments, temporaries and results of one device; what is donated counts once.
      loss_temp_bytes: temporaries of both heads' losses and gradients at `LOSS_POSITIONS`.
      seconds: that the compiler took.
    """

    text: str
    hbm_bytes: int
    loss_temp_bytes: int
    seconds: float


def compile_step(step: PlannedStep) -> CompiledStep:
    """Compiles a step.

    Raises:
      InputError: the program does not fit into the chip's memory, with the compiler's numbers; or
        the compiler knows no such topology.
    """
    import jax
    import jax.numpy as jnp

    from janus_jax.sharding import make_mesh
    from train.optim import make_optimizer
    from train.plan.layout import abstract_batch
    from train.state import state_shardings
    from train.step import make_step
    from train.task import stage_program

    config = step.config
    mesh = make_mesh(step.sizes, devices_of(step.topology))
    graphdef, loss = stage_program(config, step.model, mesh, round(step.layout.drawings))
    shardings = state_shardings(step.state, mesh)
    run = make_step(
        graphdef,
        loss,
        make_optimizer(config.optimizer, config.steps),
        config.seed,
        shardings=shardings,
        accumulate=config.accumulate,
        compute_dtype=jnp.dtype(config.compute_dtype),
        guard=config.guard,
        compiler_options=compiler_options(step.topology.chip.kind),
    )
    with jax.set_mesh(mesh):
        lowered = run.lower(
            on_devices(step.state, shardings), abstract_batch(step.layout, config, mesh)
        )
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise _refused(step, error) from error
    seconds = time.perf_counter() - start
    memory = _memory(compiled)
    return CompiledStep(
        text=compiled.as_text(),
        hbm_bytes=memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        loss_temp_bytes=loss_temporaries(step, graphdef),
        seconds=seconds,
    )


def loss_temporaries(step: PlannedStep, graphdef: Any) -> int:
    """Temporaries of the heads' losses with their gradients, on one chip with whole heads.

    The heads are arguments and their gradients results, so that what is counted is what the loss
    adds to them: logits, their gradients, and copies of states.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import SingleDeviceSharding

    from janus_jax.functional import abstract
    from train.objectives.chunked import cross_entropy
    from train.objectives.janus import image_chunk
    from train.scanned import stack

    config, width = step.config, step.model.llm.width
    there = SingleDeviceSharding(devices_of(step.topology)[0])
    dtype = jnp.dtype(config.compute_dtype)

    def shape(dtype: Any, *dims: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=there)

    params = jax.tree.map(lambda x: shape(dtype, *x.shape), stack(abstract(step.model)[1]))
    states = shape(dtype, 1, LOSS_POSITIONS, width)
    targets = shape(jnp.int32, LOSS_POSITIONS)

    def loss(params: Any, text: Any, image: Any, words: Any, codes: Any) -> jax.Array:
        model = nnx.merge(graphdef, params)
        chunk = config.loss_chunk
        drawn = image_chunk(model, chunk)
        losses = cross_entropy(model.text_logits, text, words, chunk=chunk)
        return losses.sum() + cross_entropy(model.image_logits, image, codes, chunk=drawn).sum()

    def gradients(params: Any, *rest: Any) -> Any:
        by_params, by_text, by_image = jax.grad(loss, argnums=(0, 1, 2))(params, *rest)
        heads = by_params["llm"]["lm_head"], by_params["image_head"]
        return heads, by_text, by_image

    lowered = jax.jit(gradients).lower(params, states, states, targets, targets)
    return _memory(lowered.compile()).temp_size_in_bytes


def _memory(compiled: Any) -> Any:
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("the TPU compiler gives no memory analysis of its program")
    return memory


def _refused(step: PlannedStep, error: Exception) -> InputError:
    text = " ".join(str(error).split())
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", text)
    if used is None:
        return InputError(f"the TPU compiler refuses the program: {text[:300]}")
    return InputError(
        f"{step.config.name} on {step.topology.name} needs {used.group(1)} of {used.group(2)} HBM",
        fix="choose another --remat, more --accumulate, or more chips",
    )
