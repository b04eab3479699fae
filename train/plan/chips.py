"""TPU chips and pods: what is published of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from janus_jax.errors import InputError


@dataclass(frozen=True)
class Chip:
    """One TPU chip.

    Sources: the system architecture pages of cloud.google.com/tpu/docs for memory and peak. The
    clock follows from the peak and the matrix units: peak / (2 * units * side ** 2).

    Attributes:
      name: as topologies name it.
      kind: as JAX devices name it.
      hbm_bytes: its memory.
      peak_flops: bfloat16 FLOP/s.
      clock_hz: cycles a second.
      devices: JAX devices of a chip.
      compiler_options: options without which the compiler (libtpu 0.0.41) does worse on it.
      description: how the compiler is asked for it, beside the topology's name.
    """

    name: str
    kind: str
    hbm_bytes: int
    peak_flops: float
    clock_hz: float
    devices: int = 1
    compiler_options: tuple[tuple[str, str], ...] = ()
    description: tuple[tuple[str, str], ...] = ()


_GB = 1024**3
# Otherwise weights are gathered by a synchronous all-reduce of zeros, twice the traffic, on a torus
# of three dimensions and wherever a device has few rows of them (docs/LOG.md).
_GATHER = ("xla_tpu_prefer_async_allgather_to_allreduce", "true")
# What a fusion may take of the core's own memory (VMEM). The default of 16 MB cuts large products
# into tiles that wait for memory; 64 MB is a little better still, and takes the compiler three
# times as long (docs/LOG.md).
_VMEM = ("xla_tpu_scoped_vmem_limit_kib", "32768")

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 32 * _GB, 275e12, 1.05e9, compiler_options=(_GATHER,)),
        Chip("v5e", "TPU v5 lite", 16 * _GB, 197e12, 1.5e9, compiler_options=(_GATHER, _VMEM)),
        Chip("v5p", "TPU v5", 95 * _GB, 459e12, 1.75e9, compiler_options=(_GATHER, _VMEM)),
        Chip("v6e", "TPU v6 lite", 32 * _GB, 918e12, 1.75e9, compiler_options=(_GATHER, _VMEM)),
        Chip("tpu7x", "TPU7x", 192 * _GB, 2307e12, 2.2e9, devices=2, compiler_options=(_GATHER,)),
    )
}


def compiler_options(kind: str) -> dict[str, str]:
    """XLA options of a training step, by the kind of its devices; none for what is no TPU."""
    return next((dict(c.compiler_options) for c in CHIPS.values() if c.kind == kind), {})


@dataclass(frozen=True)
class Topology:
    """A slice of a pod.

    Attributes:
      name: such as `v5p:4x4x4`, as the TPU compiler names it.
      chip: its chips.
      chips: how many.
    """

    name: str
    chip: Chip
    chips: int

    @property
    def devices(self) -> int:
        """JAX devices."""
        return self.chips * self.chip.devices

    @property
    def hbm_bytes(self) -> int:
        """Memory of one device."""
        return self.chip.hbm_bytes // self.chip.devices

    @property
    def peak_flops(self) -> float:
        """Peak of one device."""
        return self.chip.peak_flops / self.chip.devices


def parse_topology(text: str) -> Topology:
    """Reads `CHIP:AxB` or `CHIP:AxBxC`.

    Raises:
      InputError: not that form, or a chip that is not known.
    """
    name, _, shape = text.partition(":")
    if name not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise InputError(
            f"--topology {text}", f"{', '.join(CHIPS)} with a shape, such as v5p:4x4x4 or v5e:16x16"
        )
    return Topology(text, CHIPS[name], math.prod(map(int, shape.split("x"))))
