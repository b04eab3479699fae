"""What fits where: the largest batch of pictures by model, precision and memory of a device.

    python bench/fits.py

prints the table of docs/inference.md as Markdown. Nothing is allocated: the parameters are shapes,
and the sums are those by which `janus_jax.memory` refuses what does not fit.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from janus_jax import functional, memory
from janus_jax.config import JANUS_PRO_1B, JANUS_PRO_7B, JanusConfig
from janus_jax.generate.image import MAX_PICTURES
from janus_jax.quantize import quantize

MODELS = (JANUS_PRO_1B, JANUS_PRO_7B)
DTYPES = ("float32", "bfloat16", "int8")
# Padded tokens of a prompt with its template.
PROMPT_LENGTH = 64
MOST = 10_000


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
      name: heading of its column.
      gigabytes: its memory, 10^9 bytes.
      cpu: it computes in float32 where int8 is asked for, as `Janus.from_pretrained` does there,
        and draws at most 16 pictures at once.
    """

    name: str
    gigabytes: float
    cpu: bool = False

    @property
    def free(self) -> int:
        """Bytes that the planner would give to a model."""
        return int(self.gigabytes * 1e9 * memory.HEADROOM)

    def compute_dtype(self, dtype: str) -> str:
        """What is computed in, and what an int8 model keeps the rest of its weights in."""
        if dtype != "int8":
            return dtype
        return "float32" if self.cpu else "bfloat16"


DEVICES = (
    Device("CPU, 16 GB free", 16, cpu=True),
    Device("16 GB (v5e)", 16),
    Device("24 GB", 24),
    Device("80 GB (H100)", 80),
    Device("95 GB (v5p)", 95),
)


@functools.cache
def weights(config: JanusConfig, dtype: str, quantized: bool) -> int:
    """Bytes of the parameters in `dtype`, the language model's matrices in int8 if `quantized`."""
    wide = np.dtype(dtype)
    graphdef, params = functional.abstract(config, dtype=wide, param_dtype=wide)
    return memory.param_bytes(quantize(graphdef, params)[1] if quantized else params)


def largest(config: JanusConfig, dtype: str, device: Device) -> int:
    """The most pictures at once; 0 where not one fits, or the model cannot even be loaded."""
    compute = device.compute_dtype(dtype)
    return memory.largest_batch(
        config,
        weights(config, compute, dtype == "int8"),
        PROMPT_LENGTH,
        device.free,
        itemsize=np.dtype(compute).itemsize,
        most=MAX_PICTURES if device.cpu else MOST,
    )


def table() -> str:
    """The table."""
    rows = [["model", "precision", "weights", "a picture", *(d.name for d in DEVICES)]]
    rows.append(["---", "---", *["---:"] * (2 + len(DEVICES))])
    accelerator = DEVICES[1]
    for config in MODELS:
        for dtype in DTYPES:
            compute = accelerator.compute_dtype(dtype)
            itemsize = np.dtype(compute).itemsize
            one = memory.drawing(config, 0, 1, PROMPT_LENGTH, itemsize=itemsize)
            numbers = [largest(config, dtype, device) for device in DEVICES]
            rows.append(
                [
                    config.name,
                    dtype,
                    memory.gb(weights(config, compute, dtype == "int8")),
                    memory.gb(one.cache + one.step),
                    *(str(n) if n else "none" for n in numbers),
                ]
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
