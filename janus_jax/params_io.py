"""Parameters on disk: Orbax checkpoints, written tensor by tensor and read by any mesh.

What is written (`janus_jax.streaming`) is an ordinary Orbax PyTree checkpoint. A small model, which
may be shipped, is compressed by about a fifth; a large one is not, so that a conversion runs as
fast as the disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from janus_jax.errors import InputError
from janus_jax.functional import Params, flat_params
from janus_jax.manifest import entry, sha256
from janus_jax.streaming import CHUNK_BYTES, LazyTensor, Progress, StreamHandler

_COMPRESS_BELOW_BYTES = 2**28


def save_tensors(
    path: str | Path, tensors: Mapping[str, LazyTensor], *, progress: Progress | None = None
) -> dict[str, dict[str, Any]]:
    """Writes parameters as an Orbax checkpoint that appears whole, in a bounded amount of memory.

    Args:
      path: directory to write; one that is there is replaced.
      tensors: by parameter path (`llm/norm/scale`).
      progress: called with the bytes of each block that was written.

    Returns:
      For each parameter path its `shape`, `dtype` and `sha256` (of the little-endian bytes in
      row-major order), as the manifest has them.

    Raises:
      InputError: the directory cannot be written.
    """
    target = Path(path).absolute()
    stream = StreamHandler(progress)
    # Of several processes it is the one that calls this; the others are not waited for.
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=True,
        use_zarr3=True,
        use_compression=sum(t.nbytes for t in tensors.values()) < _COMPRESS_BELOW_BYTES,
        multiprocessing_options=alone,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (LazyTensor, stream),
            # Not used, but Orbax warns where it is missing.
            (jax.Array, ocp.type_handlers.ArrayHandler()),
        ),
    )
    chunks = ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            checkpointer.save(
                target,
                args=ocp.args.PyTreeSave(
                    nested(tensors), save_args=nested(dict.fromkeys(tensors, chunks))
                ),
                force=True,
            )
        # Orbax writes this machine's path into its marker, of which only the presence counts; a
        # directory that is handed on should not tell where it was made.
        marker = target / "commit_success.txt"
        if marker.exists():
            marker.write_text("committed\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{str(target)!r} cannot be written ({error})", fix="choose another directory"
        ) from error
    digests = {name.replace(".", "/"): digest for name, digest in stream.digests.items()}
    return {
        name: entry(tensor.shape, tensor.dtype, digests[name]) for name, tensor in tensors.items()
    }


def save_params(path: str | Path, params: Any, *, dtype: Any = None) -> dict[str, dict[str, Any]]:
    """Writes parameters, or any subtree of them, as `save_tensors` does.

    Args:
      path: directory to write; one that is there is replaced.
      params: `nnx.State` of arrays.
      dtype: storage dtype; None keeps each array's own.

    Returns:
      See `save_tensors`.

    Raises:
      InputError: the directory cannot be written.
    """

    def lazy(leaf: Any) -> LazyTensor:
        stored = np.dtype(leaf.dtype if dtype is None else dtype)
        return LazyTensor(tuple(leaf.shape), stored, lambda: np.asarray(leaf))

    return save_tensors(path, {name: lazy(leaf) for name, leaf in flat_params(params).items()})


def restore_params(
    path: str | Path,
    abstract_params: Params,
    shardings: Any = None,
    *,
    manifest: dict[str, Any] | None = None,
    partial: bool = False,
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
      partial: the directory may hold other parameters too; they are not read.

    Returns:
      Parameters like `abstract_params`.

    Raises:
      InputError: the directory is missing or damaged, or holds other parameters; lists them.
    """
    arrays = dict(read_params(path, abstract_params, shardings, manifest=manifest, partial=partial))
    return jax.tree_util.tree_map_with_path(
        lambda path, _: arrays[_path_name(path)], abstract_params
    )


def read_params(
    path: str | Path,
    abstract_params: Params,
    shardings: Any = None,
    *,
    manifest: dict[str, Any] | None = None,
    partial: bool = False,
) -> Iterator[tuple[str, jax.Array]]:
    """Reads what `save_params` wrote, one tensor at a time; with `shardings`, all at once.

    Args:
      path: as in `restore_params`, like all the others.
      abstract_params: see there.
      shardings: see there.
      manifest: see there.
      partial: see there.

    Yields:
      Path and value of each parameter; none is kept here.

    Raises:
      InputError: as `restore_params`, when the first one is asked for or the damaged one's turn
        comes.
    """
    source = Path(path).absolute()
    wanted = flat_params(abstract_params)
    stored = open_params(source)
    there = {k: tuple(v.shape) for k, v in stored.items() if not partial or k in wanted}
    check_structure(source, there, wanted)
    if shardings is not None:
        placed = _read_onto_mesh(source, wanted, flat_params(shardings), partial=partial)
        for name in wanted:
            yield name, placed.pop(name)
        return

    def read(name: str) -> jax.Array:
        host = stored[name].read()
        if manifest is not None and manifest[name]["sha256"] != sha256(host):
            raise InputError(
                f"{str(source)!r} is damaged: {name} does not match its sha256 in manifest.json",
                fix="copy or convert the model again",
            )
        # Cast on the host: hundreds of tiny device programs would cost more than everything else at
        # start.
        host = host.astype(wanted[name].dtype, copy=False)
        return jax.block_until_ready(jax.device_put(host))

    for name in wanted:
        yield name, read(name)


def _read_onto_mesh(
    source: Path, wanted: dict[str, Any], shardings: dict[str, Any], *, partial: bool
) -> dict[str, jax.Array]:
    """Every device reads its own part of every parameter."""
    how = {
        name: ocp.ArrayRestoreArgs(
            sharding=shardings[name], dtype=leaf.dtype, global_shape=tuple(leaf.shape)
        )
        for name, leaf in wanted.items()
    }
    what = ocp.args.PyTreeRestore(nested(wanted), restore_args=nested(how), partial_restore=partial)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return _flat(checkpointer.restore(source, args=what))
    except Exception as error:
        raise _damaged(source, error) from error


def _path_name(path: tuple[Any, ...]) -> str:
    """`llm/norm/scale` of a leaf's path; a parameter's own `value` step is left out."""
    return "/".join(str(p.key) for p in path if isinstance(p, jax.tree_util.DictKey))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b": leaf}` as `{"a": {"b": leaf}}`."""
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


def open_params(path: str | Path) -> dict[str, LazyTensor]:
    """What `save_tensors` wrote, to be read tensor by tensor.

    Args:
      path: the checkpoint directory.

    Returns:
      By parameter path; `read` reads that tensor alone, as an array of its own.

    Raises:
      InputError: the directory is missing or damaged; also `read` raises it.
    """
    source = Path(path).absolute()
    if not source.is_dir():
        raise InputError(f"parameters {str(source)!r} do not exist", fix="check the path")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        saved = _metadata(checkpointer, source)
    # Orbax takes 10 ms a tensor to look everything up again, whatever its size.
    context = ts.Context()

    def read(name: str) -> np.ndarray:
        base = {"driver": "file", "path": f"{source}/"}
        place = {"driver": "ocdbt", "base": base, "path": f"{name.replace('/', '.')}/"}
        try:
            store = ts.open({"driver": "zarr3", "kvstore": place}, context=context, read=True)
            return store.result().read().result()
        except Exception as error:
            raise _damaged(source, error) from error

    return {
        name: LazyTensor(tuple(found.shape), np.dtype(found.dtype), partial(read, name))
        for name, found in saved.items()
    }


def _metadata(checkpointer: Any, source: Path) -> dict[str, Any]:
    """Shape and dtype of every stored parameter, by path."""
    try:
        return _flat(checkpointer.metadata(source).item_metadata.tree)
    except Exception as error:  # Orbax raises whatever its parsers do
        raise _damaged(source, error) from error


def check_structure(path: Path, found: dict[str, tuple[int, ...]], wanted: dict[str, Any]) -> None:
    """Refuses missing, unexpected and wrongly shaped parameters, by name.

    Args:
      path: where they were found, for the message.
      found: shape of each parameter there is.
      wanted: arrays, or abstract ones, of the architecture.

    Raises:
      InputError: with the first six that differ.
    """
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


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"parameters {str(path)!r} cannot be read ({reason[:200]})",
        fix="copy or convert the model again",
    )
