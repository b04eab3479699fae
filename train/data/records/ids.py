"""`janus-jax data ids`: which samples the steps of a run hold, without running them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from janus_jax.errors import InputError
from train import rundir
from train.config import TrainConfig
from train.data.emoji_source import EmojiSource
from train.data.record_source import RecordSource
from train.data.records.sources import is_file_input
from train.data.samples import EmojiData
from train.data.source import Entry, Source
from train.init import find_origin
from train.own_data import resolve
from train.task import open_data


def sample_ids(run_dir: Path, steps: range) -> Iterator[dict[str, Any]]:
    """The samples of some steps of a run, in the order in which they are packed.

    Args:
      run_dir: directory of the run, finished or not.
      steps: which steps, from 0.

    Yields:
      `step`, `kind`, `name` (where the sample stands in its data set) and `id` of each. One that
      turns out broken when it is read is replaced by another, which bad_samples.jsonl tells.

    Raises:
      InputError: no run, or one without such samples.
    """
    # A run on the same machine may hold its accelerators, and this needs none.
    jax.config.update("jax_platforms", "cpu")
    config = rundir.read_config(run_dir)
    packed = run_dir / "data" / "train" / "manifest.json"
    if any(map(is_file_input, config.data)) and not packed.is_file():
        raise InputError(f"{run_dir} has not packed its data yet", fix="wait for its first step")
    source = _source(resolve(config, run_dir), run_dir)
    for step in steps:
        for entry in source.plan(step):
            found = {"step": step, "kind": entry.kind, "name": source.name(entry)}
            yield found | {"id": _id(source, entry)}


def _id(source: Source, entry: Entry) -> str:
    return source.sample_id(entry) if isinstance(source, RecordSource) else source.name(entry)


def _source(config: TrainConfig, run_dir: Path) -> Source:
    if config.objective != "janus":
        raise InputError(
            f"{run_dir} is a run of the objective {config.objective}, whose samples have no ids",
            "runs of the objective janus",
        )
    origin = find_origin(config, run_dir)
    if config.data:
        return open_data(config, origin, run_dir)
    model = origin.model
    data = EmojiData(
        config,
        image_size=model.image_size,
        num_image_tokens=model.vision.num_patches,
        vocab_size=model.llm.vocab_size,
    )
    # Which samples these are does not depend on their codes, which it takes a model to make.
    codes = np.zeros((len(data.records), model.num_image_tokens), np.int32)
    return EmojiSource(data, config.samples(), codes)
