"""What `bench/convert.py` runs in processes of its own, so that each is measured alone.

    python bench/convert_checkpoint.py write DIRECTORY --size debug|1b|7b
    python bench/convert_checkpoint.py torch SOURCE DESTINATION
    python bench/convert_checkpoint.py check MODEL --size debug|1b|7b

`write` makes a bfloat16 checkpoint in DeepSeek's layout: two shards written by `torch.save`, their
index, config, tokenizer and preprocessor. `torch` is the baseline: `torch.load` of each shard and
safetensors' `save_file`. `check` restores a converted model in bfloat16 and compares one in twenty
parameters and the largest with what `write` put there; it prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import sys
import time
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

if __name__ == "__main__":
    # Python puts the script's own folder first, where `emoji` would be a module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from convert.configs import plan_whole
from convert.engine import Shape, plan_export, shapes_of
from convert.keys import DEEPSEEK
from convert.layouts import DEEPSEEK_LAYOUT
from janus_jax.config import JanusConfig, get_config
from janus_jax.functional import abstract, flat_params

CONFIGS = {"debug": "debug", "1b": "janus-pro-1b", "7b": "janus-pro-7b"}
_PERIOD = 1_048_573  # A prime: no axis of any tensor is a multiple of it, so no two rows are alike.
_EVERY = 20


@dataclasses.dataclass(frozen=True)
class Generated:
    """A tensor whose values follow from its key: numbers of order one, different in every tensor.

    Attributes:
      key: its name.
      shape: its shape.
    """

    key: str
    shape: Shape

    def read(self) -> np.ndarray:
        """The values, bfloat16."""
        values = np.random.default_rng(0).standard_normal(_PERIOD, np.float32)
        start = zlib.crc32(self.key.encode()) % _PERIOD
        return np.resize(np.roll(values.astype(ml_dtypes.bfloat16), -start), self.shape)


def checkpoint(size: str) -> tuple[JanusConfig, dict[str, Generated]]:
    """The architecture of one size, and every tensor that its checkpoint has, in order."""
    config = get_config(CONFIGS[size])
    ours = shapes_of(flat_params(abstract(config)[1]))
    specs = plan_export(DEEPSEEK, ours, ours).their_specs
    return config, {key: Generated(key, shape) for key, shape in specs.items()}


def write(directory: Path, size: str) -> None:
    """Writes the checkpoint; one shard at a time is in memory.

    Args:
      directory: a new or empty directory.
      size: a key of `CONFIGS`.
    """
    import torch

    from convert.configs import write_config
    from convert.processor_files import write_processor_files
    from janus_jax.locate import assets_directory
    from janus_jax.processing import JANUS_PRO_PROCESSOR
    from janus_jax.processing.tokenizer import Tokenizer

    config, tensors = checkpoint(size)
    sizes = [math.prod(tensor.shape) for tensor in tensors.values()]
    half = np.searchsorted(np.cumsum(sizes), sum(sizes) / 2) + 1
    keys = list(tensors)
    directory.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number, shard in enumerate((keys[:half], keys[half:]), start=1):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        state = {
            key: torch.from_numpy(tensors[key].read().view(np.int16)).view(torch.bfloat16)
            for key in shard
        }
        torch.save(state, directory / name)
        del state
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": 2 * sum(sizes)}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2))

    tokenizer = Tokenizer.from_file(assets_directory() / "emoji" / "tokenizer.json")
    image = dataclasses.replace(JANUS_PRO_PROCESSOR.image, image_size=config.image_size)
    settings = dataclasses.replace(JANUS_PRO_PROCESSOR, image=image)
    write_config(directory, DEEPSEEK_LAYOUT, config, tokenizer, dtype="bfloat16")
    write_processor_files(directory, DEEPSEEK_LAYOUT, config, tokenizer, settings)


def convert_with_torch(source: Path, destination: Path) -> None:
    """What a short script with torch would do: load each shard, save it as safetensors.

    Args:
      source: directory with .bin shards.
      destination: a new directory.
    """
    import torch
    from safetensors.torch import save_file

    destination.mkdir()
    for path in sorted(source.glob("*.bin")):
        state = torch.load(path, weights_only=True)
        save_file(state, destination / f"{path.stem}.safetensors")
        del state


def check(model: Path, size: str) -> dict[str, float]:
    """Restores a converted model in bfloat16 and compares samples with the generator.

    Args:
      model: model directory.
      size: a key of `CONFIGS`.

    Returns:
      `restore_seconds`; `restore_peak_rss_gb` of this process, page cache of mapped files included;
      `checked_tensors`.

    Raises:
      ValueError: a parameter differs; names it.
    """
    from janus_jax.checkpoint import load_model

    started = time.perf_counter()
    params = flat_params(load_model(model, dtype="bfloat16", verify=False).params)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    config, tensors = checkpoint(size)
    plan = plan_whole(config, DEEPSEEK, shapes_of(tensors))
    largest = max(plan.entries, key=lambda entry: math.prod(entry.our_shape))
    sampled = tuple(dict.fromkeys((*plan.entries[::_EVERY], largest)))
    for path, wanted in dataclasses.replace(plan, entries=sampled).read(tensors):
        found = np.asarray(params[path])
        if found.dtype != wanted.dtype or not np.array_equal(found, wanted):
            raise ValueError(f"{path} is not what was written")
    return {
        "restore_seconds": round(seconds, 2),
        "restore_peak_rss_gb": round(peak / 1e9, 3),
        "checked_tensors": len(sampled),
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Parts of bench/convert.py; see its help.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, paths in (("write", 1), ("torch", 2), ("check", 1)):
        command = commands.add_parser(name)
        command.add_argument("paths", type=Path, nargs=paths)
        if name != "torch":
            command.add_argument("--size", choices=CONFIGS, required=True)
    args = parser.parse_args()
    if args.command == "write":
        write(args.paths[0], args.size)
    elif args.command == "torch":
        convert_with_torch(*args.paths)
    else:
        print(json.dumps(check(args.paths[0], args.size)))


if __name__ == "__main__":
    main()
