"""Model directories: everything needed to run a model, in one place on disk.

    config.json         architecture (`JanusConfig`), versioned
    params/             parameters, an Orbax PyTree checkpoint
    tokenizer.json      vocabulary
    preprocessor.json   image settings, role names, system prompt
    manifest.json       shape, dtype and sha256 of every tensor; source; versions
    MODEL_CARD.md       what the model is and may be used for

`params/` alone (`janus_jax.params_io`) holds any subtree, which is how training hands one run's
parts to the next. Restoring starts from an abstract tree, so the shapes are checked before a byte
is read and any mesh can be the target.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from janus_jax.atomic import new_directory
from janus_jax.config import JanusConfig, get_config
from janus_jax.errors import InputError
from janus_jax.functional import (
    GraphDef,
    Params,
    abstract,
    build,
    flat_params,
    unflatten_params,
)
from janus_jax.locate import SHIPPED, assets_directory, find_model
from janus_jax.manifest import (
    is_only_model,
    new_manifest,
    read_json,
    read_manifest,
    write_json,
    write_text,
)
from janus_jax.memory import check_weights, shard_bytes
from janus_jax.params_io import check_structure, read_params, restore_params, save_params
from janus_jax.processing.image import ImageSettings
from janus_jax.processing.settings import EMOJI_PROCESSOR, ProcessorConfig
from janus_jax.processing.tokenizer import Tokenizer
from janus_jax.quantize import quantize, quantize_each
from janus_jax.sharding import param_shardings

# Hashing reads every byte: free for a small model, a minute for a 7B, where it is on request.
VERIFY_BELOW_BYTES = 2**28

INT8 = "int8"
DTYPES = ("float32", "bfloat16", INT8)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What a model directory holds.

    Attributes:
      name: what it was loaded as, for messages and picture metadata.
      config: architecture.
      graphdef: static part of the model, compute dtype included.
      params: parameters.
      tokenizer: vocabulary.
      processor: image settings, role names, system prompt.
      fingerprint: 16 hex digits that identify the stored weights.
      stored_dtype: dtype of the weights on disk; None where they are mixed.
      exact: whether `params` are the weights on disk, without rounding.
      source: where the weights come from, as the manifest says.
      card_text: content of MODEL_CARD.md.
    """

    name: str
    config: JanusConfig
    graphdef: GraphDef
    params: Params
    tokenizer: Tokenizer
    processor: ProcessorConfig
    fingerprint: str
    stored_dtype: Any = None
    exact: bool = True
    source: str = ""
    card_text: str = ""


def save_model(
    path: str | Path,
    config: JanusConfig,
    params: Params,
    tokenizer: Tokenizer,
    processor: ProcessorConfig,
    *,
    card_text: str,
    dtype: Any = None,
    source: str = "",
) -> None:
    """Writes a model directory; it appears whole or not at all.

    Args:
      path: directory to write. A model directory that is there, without files of anybody else in
        it, is replaced; anything else is left alone.
      config: architecture.
      params: all parameters of that architecture.
      tokenizer: vocabulary.
      processor: image settings, role names, system prompt.
      card_text: content of MODEL_CARD.md.
      dtype: storage dtype of the parameters; None keeps theirs.
      source: where the weights come from, for the manifest (a run, or a repository and revision).

    Raises:
      InputError: parameters of another architecture, a vocabulary that does not fit, or a path
        that holds something else, cannot be written or has too little room.
    """
    target = Path(path).absolute()
    flat = flat_params(params)
    found = {k: tuple(v.shape) for k, v in flat.items()}
    check_structure(target, found, flat_params(abstract(config)[1]))
    _check_tokenizer(tokenizer, config)
    needed = sum(
        v.size * np.dtype(v.dtype if dtype is None else dtype).itemsize for v in flat.values()
    )
    with new_directory(
        target, what="a Janus-JAX model", replaceable=is_only_model, needed=needed
    ) as new:
        tensors = save_params(new / "params", params, dtype=dtype)
        write_json(new / "config.json", config.to_json())
        tokenizer.save(new / "tokenizer.json")
        processor.save(new / "preprocessor.json")
        write_text(new / "MODEL_CARD.md", card_text)
        write_json(new / "manifest.json", new_manifest(tensors, source=source))


def load_model(
    name_or_path: str | Path,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    verify: bool | None = None,
) -> LoadedModel:
    """Loads a model.

    Args:
      name_or_path: `debug` (random weights, for tests), or whatever `janus_jax.locate.find_model`
        knows: a shipped name, a model directory, PyTorch weights.
      dtype: compute and storage dtype, float32 or bfloat16; by default float32 on the CPU, where
        bfloat16 products are very slow, and bfloat16 elsewhere. `int8` stores the language model's
        matrices in int8 and computes in that default. The VQ tokenizer computes in float32 always.
      mesh: where to put the parameters, by the rules of `janus_jax.sharding`; every device reads
        its own part only. None: all of them on the default device.
      verify: check every tensor against the manifest's sha256; by default only models below
        256 MB that are not spread over a mesh (a part has no checksum).

    Returns:
      The model.

    Raises:
      InputError: no such model or dtype, too little memory, or files that are missing, damaged or
        do not belong together.
    """
    wide = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    chosen = wide if dtype is None else _dtype_name(dtype)
    int8 = chosen == INT8
    dtype = np.dtype(wide if int8 else chosen)
    name = str(name_or_path)
    if name == "debug":
        config = get_config(name)
        graphdef, params = build(config, 0, dtype=dtype, param_dtype=dtype)
        if mesh is not None:
            params = jax.device_put(params, param_shardings(params, mesh))
        if int8:
            graphdef, params = quantize(graphdef, params)
        tokenizer = Tokenizer.from_file(assets_directory() / "emoji" / "tokenizer.json")
        image = ImageSettings(image_size=config.image_size)
        processor = ProcessorConfig(image, EMOJI_PROCESSOR.roles, EMOJI_PROCESSOR.system_prompt)
        return LoadedModel(name, config, graphdef, params, tokenizer, processor, "random")

    directory = find_model(name_or_path)
    config = JanusConfig.from_json(read_json(directory / "config.json"))
    manifest = read_manifest(directory)
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    processor = ProcessorConfig.load(directory / "preprocessor.json")
    _check_tokenizer(tokenizer, config)
    if processor.image.image_size != config.image_size:
        raise InputError(
            f"{str(directory)!r}: preprocessor.json has image_size {processor.image.image_size}, "
            f"config.json {config.image_size}",
            "the same number",
        )
    graphdef, wanted = abstract(config, dtype=dtype, param_dtype=dtype)
    tensors = manifest["tensors"]
    found = {k: tuple(v["shape"]) for k, v in tensors.items()}
    check_structure(directory, found, flat_params(wanted))
    if verify is None:
        size = sum(math.prod(v["shape"]) * np.dtype(v["dtype"]).itemsize for v in tensors.values())
        verify = size < VERIFY_BELOW_BYTES and mesh is None
    shardings = None if mesh is None else param_shardings(wanted, mesh)
    checks = tensors if verify else None
    if int8:
        graphdef, small = quantize(graphdef, wanted)
        # A mesh reads all parts of all tensors at once; one device rounds each as it is read.
        check_weights(name, shard_bytes(small if mesh is None else wanted, shardings))
        read = read_params(directory / "params", wanted, shardings, manifest=checks)
        params = unflatten_params(small, dict(quantize_each(read, small)))
    else:
        check_weights(name, shard_bytes(wanted, shardings))
        params = restore_params(directory / "params", wanted, shardings, manifest=checks)
    digest = _digest(tensors)
    label = name if name in SHIPPED else config.name
    dtypes = {v["dtype"] for v in tensors.values()}
    card = directory / "MODEL_CARD.md"
    return LoadedModel(
        label,
        config,
        graphdef,
        params,
        tokenizer,
        processor,
        digest,
        stored_dtype=next(iter(dtypes)) if len(dtypes) == 1 else None,
        exact=not int8 and all(np.can_cast(np.dtype(stored), dtype) for stored in dtypes),
        source=str(manifest.get("source", "")),
        card_text=card.read_text(encoding="utf-8") if card.is_file() else "",
    )


def fingerprint(directory: Path) -> str:
    """16 hex digits that identify the weights of a model directory, from its manifest."""
    return _digest(read_manifest(directory)["tensors"])


def _digest(tensors: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()[:16]


def _dtype_name(dtype: Any) -> str:
    try:
        name = np.dtype(dtype).name
    except Exception:  # what NumPy raises depends on what it is given
        name = ""
    if name not in DTYPES:
        raise InputError(f"dtype is {dtype!r}", ", ".join(DTYPES))
    return name


def _check_tokenizer(tokenizer: Tokenizer, config: JanusConfig) -> None:
    if tokenizer.vocab_size > config.llm.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} entries", f"at most {config.llm.vocab_size}"
        )
