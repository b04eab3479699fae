"""Weights of a model directory: one file, or shards and the index that says which holds what."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from convert.readers.names import check_tensor_names, is_plain, listed
from convert.readers.safetensors import open_safetensors
from convert.readers.strict_json import parse_object
from convert.readers.tensor import StoredTensor, map_file
from convert.readers.torch_bin import open_torch_bin
from janus_jax.errors import InputError

MAX_INDEX = 8 * 2**20  # Bytes; 1,000 tensors take 100 kB.

# In order of preference, which is that of transformers.
_ENTRIES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_AGAIN = "download the directory again, from a source you trust"


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model directory, none of them read yet.

    Attributes:
        tensors: By key. From shards, in the order of the index's keys.
        files: The files that hold weights, as they are named in the directory, sorted.
        entry: Name of the file that was opened: the single file of weights, or the index.
        passed_over: Names of files that would have done as well, had `entry` been absent. Where it
            is not empty the user should be told which was taken.
    """

    tensors: dict[str, StoredTensor]
    files: tuple[Path, ...]
    entry: str
    passed_over: tuple[str, ...] = ()


def open_checkpoint(directory: Path) -> Checkpoint:
    """Find and check the weights of a model directory; nothing but headers is read.

    Looked for are `model.safetensors`, `model.safetensors.index.json`, `pytorch_model.bin` and
    `pytorch_model.bin.index.json`, in this order; the first is taken.

    Raises:
        InputError: There are no weights; a file is hostile or broken; a file lies outside the
            directory; or index and shards contradict each other. Every offender is named.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory of weights")
    present = [name for name in _ENTRIES if os.path.lexists(directory / name)]
    if not present:
        raise _no_weights(directory)
    entry, *others = present
    if entry.endswith(".json"):
        tensors, files = _open_shards(directory, entry)
    else:
        path = resolve_inside(directory, [entry], "weights")[0]
        tensors, files = _open_file(path), (path,)
    return Checkpoint(tensors, files, entry, tuple(others))


def resolve_inside(directory: Path, names: Iterable[str], what: str) -> list[Path]:
    """Paths of files that a directory must hold itself.

    A name that comes from a file must not lead elsewhere, neither by its text nor by a symbolic
    link. One kind of link is normal: a snapshot in the Hugging Face cache,
    `models--ORG--NAME/snapshots/REVISION`, links to `models--ORG--NAME/blobs`.

    Args:
        directory: The directory, which may itself be a link.
        names: File names.
        what: What names them, for messages.

    Returns:
        `directory / name` for each name, links not followed, so that messages show known names.

    Raises:
        InputError: Names every one that is not a plain file name, is missing, or leads elsewhere.
    """
    names = list(names)
    tricks = [n for n in names if not is_plain(n) or n in (".", "..") or "/" in n or "\\" in n]
    if tricks:
        raise InputError(
            f"{directory}: {what} named by something that is not a plain file name: "
            f"{listed(tricks)}",
            "names of files in the directory itself",
            _AGAIN,
        )
    root = directory.resolve()
    allowed = [root]
    repository = root.parent.parent
    if root.parent.name == "snapshots" and repository.name.startswith("models--"):
        allowed.append(repository / "blobs")
    missing, outside = [], []
    for name in names:
        try:
            target = (root / name).resolve(strict=True)
        except (OSError, RuntimeError):  # Missing, a broken link, or links in a circle.
            missing.append(name)
            continue
        if target.parent not in allowed:
            outside.append(name)
    if missing:
        raise InputError(
            f"{directory}: {what} missing: {listed(missing)}", fix="finish the download"
        )
    if outside:
        raise InputError(
            f"{directory}: {what} that link to files outside the directory: {listed(outside)}",
            "files in it, or a snapshot of the Hugging Face cache",
            "copy the files there, or name the directory that holds them",
        )
    return [directory / name for name in names]


def _open_file(path: Path) -> dict[str, StoredTensor]:
    return open_safetensors(path) if path.suffix == ".safetensors" else open_torch_bin(path)


def _open_shards(directory: Path, entry: str) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    index = resolve_inside(directory, [entry], "index")[0]
    weight_map = _weight_map(index)
    names = sorted(set(weight_map.values()))
    kind = ".safetensors" if ".safetensors" in entry else ".bin"
    strange = [name for name in names if not name.endswith(kind)]
    if strange:
        raise InputError(f"{index}: shards that are not {kind} files: {listed(strange)}")
    files = resolve_inside(directory, names, f"shards of {entry}")

    found: dict[str, StoredTensor] = {}
    twice, unlisted, misplaced = [], [], []
    for file in files:
        for key, tensor in _open_file(file).items():
            if key in found:
                twice.append(f"{key} ({found[key].file.name} and {file.name})")
            elif key not in weight_map:
                unlisted.append(f"{key} ({file.name})")
            elif weight_map[key] != file.name:
                misplaced.append(f"{key} ({file.name}, not {weight_map[key]})")
            found[key] = tensor
    absent = [f"{key} ({weight_map[key]})" for key in weight_map if key not in found]
    problems = {
        "keys that two shards have": twice,
        "keys that the index lacks": unlisted,
        "keys in another shard than the index says": misplaced,
        "keys that no shard has": absent,
    }
    if any(problems.values()):
        what = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in problems.items() if keys)
        raise InputError(f"{index} contradicts its shards: {what}", fix=_AGAIN)
    return {key: found[key] for key in weight_map}, tuple(files)


def _weight_map(index: Path) -> dict[str, str]:
    data = map_file(index)
    if len(data) > MAX_INDEX:
        raise InputError(f"{index} takes {len(data)} bytes", f"at most {MAX_INDEX}", _AGAIN)
    weight_map = parse_object(data[:], index, "index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map", "an object of shard names by tensor name")
    check_tensor_names(weight_map, index)
    wrong = [key for key, name in weight_map.items() if not isinstance(name, str)]
    if wrong:
        raise InputError(
            f"{index}: shards of these keys are not names: {listed(wrong)}", fix=_AGAIN
        )
    return weight_map


def _no_weights(directory: Path) -> InputError:
    """Says what was found instead: shards without their index are the usual reason."""
    suffixes = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".gguf")
    similar = sorted(path.name for path in directory.iterdir() if path.suffix in suffixes)
    return InputError(
        f"{directory} has no weights that can be read"
        + (f", only {listed(similar)}" if similar else ""),
        ", ".join(_ENTRIES),
        "download the whole model, shards with their index",
    )
