"""Model directories: everything needed to run a model, in one place on disk.

    config.json         architecture (`JanusConfig`), versioned
    params/             parameters, an Orbax PyTree checkpoint
    tokenizer.json      vocabulary
    preprocessor.json   image settings, role names, system prompt
    manifest.json       shape, dtype and sha256 of every tensor; source; versions
    MODEL_CARD.md       what the model is and may be used for

`params/` alone (`save_params`, `restore_params`) holds any subtree, which is how training hands
one run's parts to the next. Restoring starts from an abstract tree, so the shapes are checked
before a byte is read and any mesh can be the target.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from janus_jax.config import JanusConfig, get_config
from janus_jax.errors import InputError
from janus_jax.functional import GraphDef, Params, abstract, build, flat_params
from janus_jax.locate import SHIPPED, assets_directory, find_model, is_model
from janus_jax.manifest import (
    describe,
    new_manifest,
    read_json,
    read_manifest,
    sha256,
    write_json,
)
from janus_jax.processing.settings import EMOJI_PROCESSOR, ProcessorConfig
from janus_jax.processing.tokenizer import Tokenizer

# Hashing reads every byte: free for a small model, a minute for a 7B, where it is on request.
VERIFY_BELOW_BYTES = 2**28


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
    source: str = ""
    card_text: str = ""


def save_params(path: str | Path, params: Any, *, dtype: Any = None) -> dict[str, Any]:
    """Writes parameters, or any subtree of them, as an Orbax checkpoint that appears whole.

    Args:
      path: directory to write; one that is there is replaced.
      params: `nnx.State` of arrays.
      dtype: storage dtype; None keeps each array's own.

    Returns:
      For each parameter path its `shape`, `dtype` and `sha256` (of the little-endian bytes in
      row-major order), as the manifest has them.

    Raises:
      InputError: the directory cannot be written.
    """
    target = Path(path).absolute()
    arrays = {k: np.asarray(v) for k, v in flat_params(params).items()}
    if dtype is not None:
        arrays = {k: v.astype(dtype) for k, v in arrays.items()}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(target, args=ocp.args.PyTreeSave(_nested(arrays)), force=True)
        # Orbax writes this machine's path into its marker, of which only the presence counts; a
        # directory that is handed on should not tell where it was made.
        marker = target / "commit_success.txt"
        if marker.exists():
            marker.write_text("committed\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{str(target)!r} cannot be written ({error})", fix="choose another directory"
        ) from error
    return {key: describe(array) for key, array in arrays.items()}


def restore_params(
    path: str | Path,
    abstract_params: Params,
    shardings: Any = None,
    *,
    manifest: dict[str, Any] | None = None,
) -> Params:
    """Reads what `save_params` wrote.

    Args:
      path: the checkpoint directory.
      abstract_params: `nnx.State` of `jax.ShapeDtypeStruct` or arrays: the wanted shapes, and the
        dtypes to cast to.
      shardings: a tree like `abstract_params` with a sharding for each array; by default
        everything goes to the default device. The mesh need not be the one it was saved from.
      manifest: tensors as `save_params` returned them, to check the bytes against; only without
        `shardings`.

    Returns:
      Parameters like `abstract_params`.

    Raises:
      InputError: the directory is missing or damaged, or holds other parameters; lists them.
    """
    source = Path(path).absolute()
    wanted = flat_params(abstract_params)
    if not source.is_dir():
        raise InputError(f"parameters {str(source)!r} do not exist", fix="check the path")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        try:
            saved = _flat(checkpointer.metadata(source).item_metadata.tree)
        except Exception as error:  # Orbax raises whatever its parsers do
            raise _damaged(source, error) from error
        _check_structure(source, {k: tuple(v.shape) for k, v in saved.items()}, wanted)
        targets = None if shardings is None else flat_params(shardings)
        how = {
            key: ocp.RestoreArgs(restore_type=np.ndarray)
            if targets is None
            else ocp.ArrayRestoreArgs(
                sharding=targets[key], dtype=leaf.dtype, global_shape=tuple(leaf.shape)
            )
            for key, leaf in wanted.items()
        }
        try:
            restored = checkpointer.restore(
                source,
                args=ocp.args.PyTreeRestore(_nested(wanted), restore_args=_nested(how)),
            )
        except Exception as error:
            raise _damaged(source, error) from error
    arrays = _flat(restored)
    if targets is None:
        for key, found in (manifest or {}).items():
            if found["sha256"] != sha256(arrays[key]):
                raise InputError(
                    f"{str(source)!r} is damaged: {key} does not match its sha256 in manifest.json",
                    fix="copy or convert the model again",
                )
        # Cast on the host and moved in one call: hundreds of tiny device programs would cost more
        # than everything else at start.
        arrays = {k: v.astype(wanted[k].dtype, copy=False) for k, v in arrays.items()}
        arrays = jax.device_put(arrays)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: arrays[_path_name(path)], abstract_params
    )


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
      path: directory to write. A model directory that is there is replaced; anything else is left
        alone.
      config: architecture.
      params: all parameters of that architecture.
      tokenizer: vocabulary.
      processor: image settings, role names, system prompt.
      card_text: content of MODEL_CARD.md.
      dtype: storage dtype of the parameters; None keeps theirs.
      source: where the weights come from, for the manifest (a run, or a repository and revision).

    Raises:
      InputError: parameters of another architecture, a vocabulary that does not fit, or a path
        that holds something else or cannot be written.
    """
    target = Path(path).absolute()
    if target.exists() and not (is_model(target) or (target.is_dir() and _is_empty(target))):
        raise InputError(
            f"{str(target)!r} holds something that is not a Janus-JAX model",
            "a new or empty directory, or a model directory to replace",
        )
    found = {k: tuple(v.shape) for k, v in flat_params(params).items()}
    _check_structure(target, found, flat_params(abstract(config)[1]))
    _check_tokenizer(tokenizer, config)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"{str(target)!r} cannot be written ({error.strerror})", fix="choose another directory"
        ) from error
    try:
        new = work / "new"
        tensors = save_params(new / "params", params, dtype=dtype)
        write_json(new / "config.json", config.to_json())
        tokenizer.save(new / "tokenizer.json")
        processor.save(new / "preprocessor.json")
        (new / "MODEL_CARD.md").write_text(card_text, encoding="utf-8")
        manifest = new_manifest(tensors, source=source)
        write_json(new / "manifest.json", manifest)
        if target.exists():
            target.rename(work / "old")
        new.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def load_model(
    name_or_path: str | Path, *, dtype: Any = None, verify: bool | None = None
) -> LoadedModel:
    """Loads a model.

    Args:
      name_or_path: a shipped name (`emoji`), `debug` (random weights, for tests), or a model
        directory.
      dtype: compute and storage dtype; by default float32 on the CPU, where bfloat16 products are
        very slow, and bfloat16 elsewhere. The VQ tokenizer computes in float32 always.
      verify: check every tensor against the manifest's sha256; by default only models below
        256 MB.

    Returns:
      The model, on the default device.

    Raises:
      InputError: no such model, or files that are missing, damaged or do not belong together.
    """
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    dtype = np.dtype(dtype)
    name = str(name_or_path)
    if name == "debug":
        config = get_config(name)
        graphdef, params = build(config, 0, dtype=dtype, param_dtype=dtype)
        tokenizer = Tokenizer.from_file(assets_directory() / "emoji" / "tokenizer.json")
        image = EMOJI_PROCESSOR.image.__class__(image_size=config.image_size)
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
    _check_structure(directory, found, flat_params(wanted))
    if verify is None:
        size = sum(math.prod(v["shape"]) * np.dtype(v["dtype"]).itemsize for v in tensors.values())
        verify = size < VERIFY_BELOW_BYTES
    params = restore_params(directory / "params", wanted, manifest=tensors if verify else None)
    digest = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()[:16]
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
        stored_dtype=dtypes.pop() if len(dtypes) == 1 else None,
        source=str(manifest.get("source", "")),
        card_text=card.read_text(encoding="utf-8") if card.is_file() else "",
    )


def _is_empty(path: Path) -> bool:
    return next(path.iterdir(), None) is None


def _path_name(path: tuple[Any, ...]) -> str:
    """`llm/norm/scale` of a leaf's path; a parameter's own `value` step is left out."""
    return "/".join(str(p.key) for p in path if isinstance(p, jax.tree_util.DictKey))


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _check_structure(path: Path, found: dict[str, tuple[int, ...]], wanted: dict[str, Any]) -> None:
    """Refuses missing, unexpected and wrongly shaped parameters, by name."""
    wrong = [f"{k} missing" for k in wanted if k not in found]
    wrong += [f"{k} unexpected" for k in found if k not in wanted]
    wrong += [
        f"{k} is {found[k]} instead of {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in found and found[k] != tuple(v.shape)
    ]
    if wrong:
        shown = ", ".join(wrong[:6]) + (f" and {len(wrong) - 6} more" if len(wrong) > 6 else "")
        raise InputError(
            f"{str(path)!r}: the parameters are not those of the architecture: {shown}",
            fix="use the config.json that the parameters were saved with",
        )


def _check_tokenizer(tokenizer: Tokenizer, config: JanusConfig) -> None:
    if tokenizer.vocab_size > config.llm.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} entries", f"at most {config.llm.vocab_size}"
        )


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"parameters {str(path)!r} cannot be read ({reason[:200]})",
        fix="copy or convert the model again",
    )
