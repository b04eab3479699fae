"""What the TPU compiler makes of the loop that draws a picture, without a TPU.

    python -m venv .venv-tpu && .venv-tpu/bin/pip install -e ".[tpu]"     # once; Linux x86-64
    .venv-tpu/bin/python bench/decode_hlo.py --topology v5e:2x2 --json
    .venv-tpu/bin/python bench/decode_hlo.py --topology v5p:2x2x1 --json

Compiles `janus_jax.generate.image.advance` of Janus-Pro-1B in bfloat16 for one chip of a topology,
from shapes alone, and reads the optimised program: the bytes that a step moves from and to the
chip's memory over the bytes of its weights and caches (1.0 is the floor), the largest copy in the
loop, and whether each cache is updated in place. What is copied before the loop, once a call, is
told apart. Nothing here is a measured time.

libtpu has an environment of its own, because wherever it is installed JAX looks for a TPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Python puts the script's own folder first, where `convert` and `emoji` would be files.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import hlo
from train.plan.hlo import ENTRY, computations, sizes
from train.plan.libtpu import INSTALL, QUIET, installed

PROMPT_LENGTH = 32


def main() -> int:
    """Compiles and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:2x2", help="as the TPU compiler names it")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--model", default="janus-pro-1b", help="architecture")
    parser.add_argument("--layers", type=int, help="cut the language model to this many layers")
    parser.add_argument("--pictures", type=int, default=1, help="pictures at a time")
    parser.add_argument("--save", help="write the optimised HLO text here")
    options = parser.parse_args()
    if not installed():
        print(
            "decode_hlo: libtpu is not in this environment; run\n"
            f"  {INSTALL}\n"
            f"  .venv-tpu/bin/python bench/decode_hlo.py {' '.join(sys.argv[1:])}",
            file=sys.stderr,
        )
        return 1
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    start = time.perf_counter()
    text = compiled(options.topology, options.model, options.layers, options.pictures)
    seconds = time.perf_counter() - start
    if options.save:
        with open(options.save, "w", encoding="utf-8") as file:
            file.write(text)
    report = {
        "topology": options.topology,
        "model": options.model,
        "layers": options.layers,
        "pictures": options.pictures,
        "compile_seconds": seconds,
        **figures(text),
    }
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))
    return 0


def compiled(topology: str, model: str, layers: int | None, pictures: int) -> str:
    """Optimised HLO text of the loop for the first chip of a topology."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from janus_jax import functional
    from janus_jax.config import NAMED
    from janus_jax.generate import image
    from janus_jax.generate.sampling import Sampling

    config = NAMED[model]
    if layers is not None:
        config = dataclasses.replace(config, llm=dataclasses.replace(config.llm, depth=layers))
    chip = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    there = SingleDeviceSharding(chip)

    def shape(*dims: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=there)

    graphdef, params = functional.abstract(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    how, weight = Sampling(shape(dtype=jnp.float32)), shape(dtype=jnp.float32)
    state = jax.eval_shape(
        lambda params, ids, mask, positions, owner, keys_from, weight, how: image.begin(
            graphdef,
            params,
            ids,
            mask,
            positions,
            owner,
            keys_from,
            weight,
            how,
            num_codes=config.num_image_tokens,
        ),
        params,
        shape(1, 2, PROMPT_LENGTH),
        shape(1, PROMPT_LENGTH, dtype=jnp.bool_),
        shape(1, PROMPT_LENGTH),
        shape(pictures),
        (shape(dtype=jnp.uint32), shape(pictures, 2, dtype=jnp.uint32), shape(pictures)),
        weight,
        how,
    )
    params, state = jax.tree.map(lambda x: shape(*x.shape, dtype=x.dtype), (params, state))
    lowered = image.advance.lower(graphdef, params, state, shape(), weight, how)
    return str(lowered.compile().as_text())


def figures(text: str) -> dict[str, Any]:
    """What the text says.

    Weights and caches are the arguments of the program; JAX leaves out those it does not use, so
    the text head, the encoders and the VQ decoder are not among them.
    """
    program = computations(text)
    shapes = hlo.entry_shapes(text)
    arguments = sum(hlo.hbm_bytes(shape) for shape in shapes)
    # Arrays with four dimensions are caches: the loop has no convolution.
    caches = {i for i, shape in enumerate(shapes) if shape.count(",") == 3}
    moved = hlo.loop_bytes(program)
    return {
        "weights_and_cache_bytes": arguments,
        "loop_bytes": moved,
        "bytes_over_weights_and_cache": moved / arguments,
        "largest_copy_in_loop_bytes": hlo.largest_copy(program),
        "copied_before_loop_bytes": sum(
            size for i in program[ENTRY] if i.op == "copy" for size, _ in sizes(i.shape)
        ),
        "caches": len(caches),
        "caches_aliased": bool(caches) and caches <= hlo.aliased(text),
    }


if __name__ == "__main__":
    sys.exit(main())
