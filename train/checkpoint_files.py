"""How checkpoints lie on disk: what is written, and which file an error is about."""

from __future__ import annotations

import errno
import functools
import re
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore as ts


def array_storage() -> ocp.PyTreeCheckpointHandler:
    """How arrays are stored: plain, for numbers hardly compress, and without Orbax's side files.

    The side files (what the arrays were sharded like) are not needed, and damage in them could stop
    a restore of sound arrays.
    """
    handler = ocp.type_handlers.ArrayHandler(
        enable_write_sharding_file=False, array_metadata_store=None
    )
    return ocp.PyTreeCheckpointHandler(
        use_ocdbt=True,
        use_zarr3=True,
        use_compression=False,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, handler)),
    )


def root_cause(error: BaseException) -> str:
    """The words of the error that others were raised from, without the settings they repeat."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if found := re.search(r": ([^:]+) \[os_error_code=", text):
        return found[1].strip()  # the system's own words
    text = text.split(" [tensorstore_spec=")[0]
    return text.splitlines()[0] if text else type(error).__name__


# What a missing or garbled file can make the system say, too.
_OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG}


def is_of_the_system(error: BaseException) -> bool:
    """Whether reading failed for want of memory or because storage refused, whatever the bytes."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for one in chain:
        if isinstance(one, MemoryError) or "RESOURCE_EXHAUSTED" in str(one):
            return True
        found = re.search(r"\[os_error_code='(\d+)'", str(one))  # as TensorStore tells it
        code = one.errno if isinstance(one, OSError) else int(found[1]) if found else None
        if code is not None and code not in _OF_THE_FILE:
            return True
    return False


def locate(item: Path, error: BaseException, otherwise: Path) -> str:
    """`FILE: reason` of an error that reading an item of a checkpoint raised.

    Args:
      item: the item's directory.
      error: the error.
      otherwise: the file, where the error tells nothing.
    """
    reason = root_cause(error)
    if files := list(re.finditer(r'local file "([^"]+[^"/])":? ?', reason)):
        path, reason = Path(files[-1][1]), reason[files[-1].end() :]
    elif array := re.search(r'"(\.[^"/]+)/(c[/0-9]*)?[^"]*"', reason):
        path = data_file(item, array[1].replace("\\", ""), array[2] or "c")
        if path == item:  # no such array: it is the list of them that is wrong
            path = otherwise
        reason = reason.rpartition('/": ')[2]
    else:
        path = otherwise
    return f"{path}: {reason[:200]}"


def data_file(item: Path, array: str, chunk: str = "c") -> Path:
    """The file that holds a chunk of an array, by default the first one.

    It is the item's directory where there is no such array or chunk.
    """
    try:
        store = ts.KvStore.open({"driver": "file", "path": f"{item}/"}).result()
        versions = ts.ocdbt.dump(store).result()["versions"]
        nodes = [versions[-1]["root"]["location"]]
        while nodes:
            node = nodes.pop()
            for entry in ts.ocdbt.dump(store, node).result()["entries"]:
                if "location" in entry:
                    nodes.append(entry["location"])
                elif entry["key"].startswith(f"{array}/{chunk}".encode()):
                    # `kind:directory:file:offset:length`; a small array lies in the node itself.
                    _, directory, file, *_ = entry.get("indirect_value", node).split(":")
                    return item / directory / file
    except Exception:  # what is broken may be the index itself
        pass
    return item


@functools.cache
def ignore_orphans() -> None:
    """Keeps Python quiet about reads and writes that Orbax leaves behind when one of them fails."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        about = f"{unraisable.object!r} {unraisable.exc_value}"
        if "_read_array" not in about and "Event loop is closed" not in about:
            before(unraisable)

    sys.unraisablehook = hook
