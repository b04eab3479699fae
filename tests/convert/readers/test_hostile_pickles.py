"""Pickles made to run something, to read past a storage, or to exhaust the machine: all refused.

Each is refused for a reason that names what it tried, and nothing happens: the payloads create a
file, the canary, and are shown to do so under Python's own unpickler.
"""

import copyreg
import io
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.readers.torch_bin import open_torch_bin
from janus_jax.errors import InputError
from tests.convert.readers.forge import (
    call,
    dict_,
    name,
    pickled,
    refuse,
    storage,
    tensor,
    text,
    tuple_,
    write_bin,
)

SYSTEM = name("os", "system")
NAMESPACE = name("argparse", "Namespace")


def touch(canary: Path) -> bytes:
    """The shell command of the payloads."""
    return text(f"touch {canary}")


def source(canary: Path) -> bytes:
    """The Python statement of the payloads."""
    return text(f"open({str(canary)!r}, 'w').close()")


def inner(canary: Path) -> bytes:
    """A whole pickle within the pickle, as the bytes that protocol 2 has no instruction for."""
    payload = pickled(call(SYSTEM, touch(canary))).decode("latin-1")
    return call(name("_codecs", "encode"), text(payload), text("latin-1"))


def chained_module(canary: Path) -> bytes:
    """getattr(__import__("os"), "system")(command)."""
    module = call(name("builtins", "__import__"), text("os"))
    return call(call(name("builtins", "getattr"), module, text("system")), touch(canary))


def lazy_map(canary: Path) -> bytes:
    """tuple.__new__(tuple, map.__new__(map, os.system, (command,))): no REDUCE at all."""
    mapped = name("builtins", "map") + tuple_(SYSTEM, tuple_(touch(canary))) + b"\x81"
    return name("builtins", "tuple") + tuple_(mapped) + b"\x81"


def set_state(canary: Path) -> bytes:
    """Gives an object a __setstate__ of our choice, and then a state."""
    return NAMESPACE + b")\x81" + dict_(__setstate__=SYSTEM) + b"b" + touch(canary) + b"b"


def partial(canary: Path) -> bytes:
    return call(call(name("functools", "partial"), SYSTEM, touch(canary)))


def method_caller(canary: Path) -> bytes:
    path = call(name("pathlib", "PosixPath"), text(str(canary)))
    return call(call(name("operator", "methodcaller"), text("touch")), path)


def time_it(canary: Path) -> bytes:
    return call(name("timeit", "timeit"), source(canary), text(""), name("time", "time"), b"K\1")


# What each payload runs, and the name that its refusal must have.
FIRING: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system": (lambda c: call(SYSTEM, touch(c)), r"asks for 'os\.system'"),
    "posix.system": (lambda c: call(name("posix", "system"), touch(c)), r"'posix\.system'"),
    "subprocess": (
        lambda c: call(name("subprocess", "getoutput"), touch(c)),
        r"'subprocess\.getoutput'",
    ),
    "eval": (
        lambda c: call(name("builtins", "eval"), text(f"open({str(c)!r}, 'w').close()")),
        r"'builtins\.eval'",
    ),
    "eval of Python 2": (
        lambda c: call(name("__builtin__", "eval"), text(f"open({str(c)!r}, 'w').close()")),
        r"'__builtin__\.eval'",
    ),
    "exec": (lambda c: call(name("builtins", "exec"), source(c)), r"'builtins\.exec'"),
    "open": (
        lambda c: call(name("io", "open"), text(str(c)), text("w")),
        r"'io\.open'",
    ),
    "getattr of __import__": (chained_module, r"'builtins\.getattr'"),
    "functools.partial": (partial, r"'functools\.partial'"),
    "operator.methodcaller": (method_caller, r"'operator\.methodcaller'"),
    "timeit": (time_it, r"'timeit\.timeit'"),
    "pickle.loads": (lambda c: call(name("pickle", "loads"), inner(c)), r"'pickle\.loads'"),
    "a pickle as a storage": (
        lambda c: call(name("torch.storage", "_load_from_bytes"), inner(c)),
        r"'torch\.storage\._load_from_bytes'",
    ),
    "INST": (
        lambda c: b"(" + touch(c) + b"ios\nsystem\n",
        r"instruction INST of 'os\.system'",
    ),
    "OBJ": (lambda c: b"(" + SYSTEM + touch(c) + b"o", r"'os\.system'"),
    "NEWOBJ": (lazy_map, r"'builtins\.tuple'"),
    "BUILD": (set_state, r"'os\.system'"),
    "STACK_GLOBAL": (
        lambda c: text("os") + text("system") + b"\x93" + tuple_(touch(c)) + b"R",
        r"instruction STACK_GLOBAL of 'os\.system'",
    ),
    "a value of the state dict": (
        lambda c: dict_(w=tensor(), x=call(SYSTEM, touch(c))),
        r"'os\.system'",
    ),
    "an argument of a tensor": (
        lambda c: tensor(shape=call(SYSTEM, touch(c))),
        r"'os\.system'",
    ),
    "the type of a storage": (
        lambda c: tensor(storage(call(SYSTEM, touch(c)))),
        r"'os\.system'",
    ),
    "the hooks of a tensor": (
        lambda c: tensor(hooks=call(SYSTEM, touch(c))),
        r"'os\.system'",
    ),
}


class Careless(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """Python's unpickler, with storages for those payloads that hide behind one."""

    def persistent_load(self, pid):
        return pid

    def find_class(self, module, name):
        if module == "torch.storage":
            return pickle.loads
        if module.startswith("torch"):
            return lambda *args: None
        return super().find_class(module, name)


@pytest.mark.parametrize("trick", FIRING)
def test_what_would_run_is_refused_by_name_and_does_not_run(trick: str, tmp_path: Path):
    payload, reason = FIRING[trick]
    canary = tmp_path / "canary"
    refuse(tmp_path / "model.bin", payload(canary), reason)
    assert not canary.exists()
    Careless(io.BytesIO(pickled(payload(canary)))).load()
    assert canary.exists(), "the payload is harmless: this test would prove nothing"


def test_names_are_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    canary = tmp_path / "canary"
    (tmp_path / "canary_module.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    reason = r"'canary_module\.anything'"
    refuse(tmp_path / "model.bin", name("canary_module", "anything"), reason)
    assert not canary.exists() and "canary_module" not in sys.modules
    with pytest.raises(AttributeError):
        pickle.loads(pickled(name("canary_module", "anything")))
    assert canary.exists()
    del sys.modules["canary_module"]


@pytest.mark.parametrize("instruction", ["EXT1", "EXT2", "EXT4"])
def test_registered_extensions_are_refused(instruction: str, tmp_path: Path):
    layout = {"EXT1": "<cB", "EXT2": "<cH", "EXT4": "<ci"}[instruction]
    code = {"EXT1": b"\x82", "EXT2": b"\x83", "EXT4": b"\x84"}[instruction]
    canary = tmp_path / "canary"
    value = struct.pack(layout, code, 250) + tuple_(touch(canary)) + b"R"
    copyreg.add_extension("os", "system", 250)
    try:
        refuse(tmp_path / "model.bin", value, f"instruction {instruction};")
        assert not canary.exists()
        pickle.loads(pickled(value))
        assert canary.exists()
    finally:
        copyreg.remove_extension("os", "system", 250)


# Names that look as if they belonged to torch, and more doors to the same room.
@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("torch.hub", "load"),
        ("torch.jit", "load"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch._utils", "_import_dotted_name"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch", "QInt8Storage"),
        ("torch", "FloatStorage.from_file"),
        ("torch.FloatStorage", "from_file"),
        ("collections", "OrderedDict.__init__"),
        ("collections ", "OrderedDict"),
        ("collections.OrderedDict", ""),
        ("", "collections.OrderedDict"),
        ("builtins", "compile"),
        ("types", "CodeType"),
        ("types", "FunctionType"),
        ("marshal", "loads"),
        ("codecs", "decode"),
        ("importlib", "import_module"),
        ("runpy", "run_path"),
        ("ctypes", "CDLL"),
        ("socket", "create_connection"),
        ("shutil", "rmtree"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("pathlib", "PosixPath"),
        ("copyreg", "_reconstructor"),
        ("os", "system\x1b[2J"),
    ],
)
def test_only_the_names_of_a_state_dict_are_known(module: str, attribute: str, tmp_path: Path):
    path = write_bin(tmp_path / "model.bin", name(module, attribute))
    with pytest.raises(InputError, match="the pickle asks for '") as caught:
        open_torch_bin(path)
    assert repr(f"{module}.{attribute}") in str(caught.value)
