"""The peers' layouts: safetensors, config, tokenizer and preprocessing, as the peers load them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.configs import write_config
from convert.destinations.model_directory import stored_as
from convert.destinations.safetensors_writer import Spec, write_shards
from convert.engine import Plan, plan_export, shapes_of
from convert.layouts import Layout
from convert.processor_files import write_processor_files
from convert.source import Source
from janus_jax.functional import abstract, flat_params
from janus_jax.manifest import write_json
from janus_jax.params_io import LazyTensor

CONVERSION_FILE = "conversion.json"
"""What manifest.json is to a model directory of ours, whose mark that name is."""

Progress = Callable[[int], None]


class _Arrays(Mapping[str, np.ndarray]):
    """Parameters read at each look-up, so that one of them is in memory at a time."""

    def __init__(self, params: Mapping[str, LazyTensor]):
        self._params = params

    def __getitem__(self, path: str) -> np.ndarray:
        return self._params[path].read()  # in its own dtype: it is cast in blocks, when written

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)


def export_plan(source: Source, layout: Layout) -> Plan:
    """How the parameters become tensors of the layout.

    Raises:
      MappingError: parameters that do not fit the architecture; all of them.
    """
    wanted = shapes_of(flat_params(abstract(source.config)[1]))
    return plan_export(layout.table, wanted, shapes_of(source.params))


def export_specs(plan: Plan, params: Mapping[str, LazyTensor]) -> dict[str, Spec]:
    """Shape and dtype of every tensor that an export writes, in its order."""
    dtypes: dict[str, np.dtype] = {}
    for entry in plan.entries:  # tensors of several dtypes are fused in the widest, losing nothing
        dtype = params[entry.ours].dtype
        dtypes[entry.theirs] = np.promote_types(dtype, dtypes.get(entry.theirs, dtype))
    return {key: Spec(shape, dtypes[key]) for key, shape in plan.their_specs.items()}


def write_torch_layout(
    directory: Path,
    source: Source,
    layout: Layout,
    dtype: np.dtype | None,
    *,
    max_shard_bytes: int,
    card: Callable[[], str],
    facts: Callable[[], Mapping[str, Any]],
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Fills an empty directory.

    Args:
      directory: the directory.
      source: the model.
      layout: which peer's.
      dtype: storage dtype; None keeps each tensor's own.
      max_shard_bytes: most bytes of tensors in a file.
      card: gives the content of the model card, which the hub wants as README.md.
      facts: gives what conversion.json says beside the tensors.
      progress: called with bytes as they are written.

    Returns:
      conversion.json's entries by key.

    Raises:
      InputError: the layout cannot express the architecture or its preprocessing.
    """
    params = stored_as(source.params, dtype)
    plan = export_plan(source, layout)
    specs = export_specs(plan, params)
    names = sorted({spec.dtype.name for spec in specs.values()}, key=_by_size)
    write_config(directory, layout, source.config, source.tokenizer, dtype=names[0])
    write_processor_files(directory, layout, source.config, source.tokenizer, source.settings)
    tensors = write_shards(
        directory,
        specs,
        plan.write(_Arrays(params)),
        max_bytes=max_shard_bytes,
        progress=progress,
    )
    (directory / "README.md").write_text(card(), encoding="utf-8")
    write_json(directory / CONVERSION_FILE, {"tensors": tensors, **facts()})
    return tensors


def _by_size(name: str) -> int:
    # Where dtypes are mixed, the config names the narrowest: that of the large matrices.
    return {"float64": 8, "float32": 4}.get(name, 2)
