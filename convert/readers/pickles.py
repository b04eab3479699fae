"""The pickle inside a file of torch.save, read without running anything.

A pickle is a program for a small stack machine, and two of its instructions import any object and
call it. `pickle.Unpickler` with a `find_class` filter is one forgotten instruction, or one callable
too many on the list, away from running what the file says. So this is not an unpickler with a
filter but a machine of its own that has no instruction to import or to call: names are looked up
in a table of inert markers, and what stands for a call builds a description of a tensor.
It knows only the instructions that torch.save emits (pickle protocol 2), and bounds time and
memory: the input's size, the number of instructions, and keys that cost little to hash.
"""

import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from convert.readers.names import shown
from convert.readers.vocabulary import (
    VOCABULARY,
    Name,
    Namespace,
    OrderedDict,
    PickledStorage,
    PickledTensor,
)
from janus_jax.errors import InputError

MAX_BYTES = 16 * 2**20  # A state dict of 1,000 tensors takes 150 kB.
MAX_INSTRUCTIONS = 2_000_000  # It takes 40,000.
_ALLOWED = "a state dict: names, tensors, parameters, and plain values beside it"
_TRUST = "do not load this file with torch either; get the weights from a source you trust"


_INSTRUCTION_NAMES = {known.code: known.name for known in pickletools.opcodes}


def read_pickle(data: bytes, file: Path) -> Any:
    """The object that a pickle of torch.save describes.

    Args:
        data: The pickle.
        file: For messages.

    Returns:
        None, bools, ints, floats, text, tuples, lists, dicts with text or int keys,
        `PickledTensor`, or `Namespace`, nested in any way. Parts may be shared, and a hostile
        pickle may contain itself: do not descend without a bound.

    Raises:
        InputError: The pickle is broken, too large, of another protocol, or asks for anything that
            a state dict does not need, which the message names.
    """
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{file}: the pickle takes {len(data)} bytes", f"at most {MAX_BYTES}", _TRUST
        )
    return _Machine(data, file).run()


class _Machine:
    """A stack of values, the positions of marks in it, and a memo of values by number."""

    def __init__(self, data: bytes, file: Path):
        self.data = data
        self.file = file
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_INSTRUCTIONS):
            code = self.take(1)
            if code == b".":
                if len(self.stack) != 1 or self.marks or self.position != len(self.data):
                    self.broken("it ends with values or bytes left over")
                return self.stack[0]
            execute = _INSTRUCTIONS.get(code)
            if execute is None:
                self.refuse(self._describe(code))
            execute(self)
        self.refuse(f"more than {MAX_INSTRUCTIONS} instructions")

    def refuse(self, what: str) -> NoReturn:
        raise InputError(f"{self.file}: the pickle asks for {what}", _ALLOWED, _TRUST)

    def broken(self, why: str) -> NoReturn:
        raise InputError(f"{self.file}: the pickle is broken: {why}", fix="download it again")

    def _describe(self, code: bytes) -> str:
        """An instruction that is not executed, with the name that it would import."""
        name = _INSTRUCTION_NAMES.get(code.decode("latin-1"))
        if name is None:
            return f"the unknown instruction {code[0]:#04x}"
        target = ""
        if name == "INST":
            target = f" of {shown('.'.join((self.line(), self.line())))}"
        elif name == "STACK_GLOBAL":
            words = [value for value in self.stack[-2:] if isinstance(value, str)]
            target = f" of {shown('.'.join(words))}"
        return f"the instruction {name}{target}"

    # Reading the input.

    def take(self, count: int) -> bytes:
        taken = self.data[self.position : self.position + count]
        if len(taken) < count:
            self.broken("it ends in the middle")
        self.position += count
        return taken

    def number(self, layout: str) -> Any:
        packed = struct.Struct(layout)
        return packed.unpack(self.take(packed.size))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 256)
        if end < 0:
            self.broken("a name does not end")
        taken = self.take(end + 1 - self.position)
        return taken[:-1].decode("latin-1")

    # The stack.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.broken("it takes a value that is not there")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            self.broken("it goes back to a mark that is not there")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def top(self, *kinds: type) -> Any:
        value = self.pop()
        if type(value) not in kinds:
            self.refuse(f"adding to a {_kind(value)}")
        self.push(value)
        return value

    # Instructions whose meaning is more than a push.

    def global_(self) -> None:
        name = ".".join((self.line(), self.line()))
        if name not in VOCABULARY:
            self.refuse(shown(name))
        self.push(VOCABULARY[name])

    def put(self, index: int) -> None:
        value = self.pop()
        self.memo[index] = value
        self.push(value)

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.broken("it recalls a value that it never stored")
        self.push(self.memo[index])

    def tuple_(self, size: int) -> None:
        values = [self.pop() for _ in range(size)]
        self.push(tuple(reversed(values)))

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict, OrderedDict)
        if len(items) % 2:
            self.broken("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nothing else is ever a key here, and nested tuples, or large integers that collide,
            # could make hashing take forever.
            if type(key) is not str and not (type(key) is int and abs(key) < 2**31):
                self.refuse(f"a key that is a {_kind(key)}")
            if key in target:
                self.refuse(f"setting the key {shown(str(key)[:100])} twice")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def protocol(self) -> None:
        version = self.take(1)[0]
        if self.position != 2:
            self.broken("it begins twice")
        if version != 2:
            raise InputError(
                f"{self.file}: the pickle is of protocol {version}",
                "protocol 2, as torch.save writes by default",
                "save it again without `pickle_protocol`",
            )

    def persistent(self) -> None:
        """A reference to a storage: ("storage", type, key, device, size)."""
        match self.pop():
            case ("storage", Name() as kind, str(key), str(), size) if _is_size(size):
                if kind.storage is None and kind.name != "torch.storage.UntypedStorage":
                    self.refuse(f"a storage of type {kind.name}")
                self.push(PickledStorage(key, kind.storage, size))
            case other:
                self.refuse(f"a reference outside the file that is not a storage ({_kind(other)})")

    def reduce(self) -> None:
        """What stands for a call: these four, each with just the arguments torch.save gives."""
        arguments, function = self.pop(), self.pop()
        if type(function) is not Name or type(arguments) is not tuple:
            self.refuse(f"calling a {_kind(function)}")
        name = function.name.rpartition(".")[2]
        match name, arguments:
            case "OrderedDict", ():
                self.push(OrderedDict())
            case "_rebuild_parameter", (PickledTensor() as tensor, bool(), OrderedDict() as hooks):
                self._check_hooks(hooks)
                self.push(tensor)
            case "_rebuild_tensor_v2", (storage, offset, shape, strides, bool(), hooks, *more):
                self._check_hooks(hooks)
                self._check_metadata(more)
                dtype = getattr(storage, "dtype", None)
                self.push(self._tensor(storage, dtype, offset, shape, strides))
            case "_rebuild_tensor_v3", (
                storage,
                offset,
                shape,
                strides,
                bool(),
                hooks,
                Name(dtype=np.dtype() as dtype),
                *more,
            ):
                self._check_hooks(hooks)
                self._check_metadata(more)
                if getattr(storage, "dtype", None) is not None:
                    self.refuse("a tensor of one type on a storage of another")
                self.push(self._tensor(storage, dtype, offset, shape, strides))
            case _:
                kinds = ", ".join(_kind(argument) for argument in arguments[:8])
                self.refuse(f"calling {function.name} with ({kinds})")

    def _tensor(self, storage: Any, dtype: Any, offset: Any, shape: Any, strides: Any) -> Any:
        integers = [offset]
        for sizes in (shape, strides):
            if type(sizes) is not tuple:
                self.refuse(f"a tensor whose shape or strides are a {_kind(sizes)}")
            integers += sizes
        if any(type(value) is not int for value in integers):
            self.refuse("a tensor whose offset, shape or strides are not integers")
        if not isinstance(storage, PickledStorage):
            self.refuse(f"a tensor on a {_kind(storage)}, which is not a storage")
        if dtype is None:
            self.refuse("a tensor without a type on untyped bytes")
        return PickledTensor(storage, dtype, offset, shape, strides)

    def _check_hooks(self, hooks: Any) -> None:
        if type(hooks) is not OrderedDict or hooks:
            self.refuse("a tensor with backward hooks")

    def _check_metadata(self, more: list[Any]) -> None:
        if len(more) > 1 or (more and more[0]):
            self.refuse("a tensor with metadata, such as a conjugate or negative view")

    def new_object(self) -> None:
        arguments, kind = self.pop(), self.pop()
        if kind is not VOCABULARY["argparse.Namespace"] or arguments != ():
            self.refuse(f"making a {_kind(kind)}")
        self.push(Namespace())

    def build(self) -> None:
        """Attributes of an object: `_metadata` of an OrderedDict, anything of a Namespace."""
        state = self.pop()
        target = self.top(OrderedDict, Namespace)
        if type(state) is not dict:
            self.refuse(f"attributes that are a {_kind(state)}")
        if type(target) is OrderedDict and set(state) - {"_metadata"}:
            self.refuse(f"setting attributes {', '.join(shown(str(key)) for key in state)}")


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Name) else type(value).__name__.lower()


def _long(machine: _Machine) -> None:
    size = machine.take(1)[0]
    machine.push(int.from_bytes(machine.take(size), "little", signed=True))


def _text(machine: _Machine) -> None:
    taken = machine.take(machine.number("<I"))
    try:
        machine.push(taken.decode("utf-8"))
    except UnicodeDecodeError:
        machine.broken("text that is not UTF-8")


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.protocol,  # PROTO
    b"c": _Machine.global_,  # GLOBAL
    b"q": lambda m: m.put(m.number("<B")),  # BINPUT
    b"r": lambda m: m.put(m.number("<I")),  # LONG_BINPUT
    b"h": lambda m: m.get(m.number("<B")),  # BINGET
    b"j": lambda m: m.get(m.number("<I")),  # LONG_BINGET
    b"N": lambda m: m.push(None),  # NONE
    b"\x88": lambda m: m.push(True),  # NEWTRUE
    b"\x89": lambda m: m.push(False),  # NEWFALSE
    b"K": lambda m: m.push(m.number("<B")),  # BININT1
    b"M": lambda m: m.push(m.number("<H")),  # BININT2
    b"J": lambda m: m.push(m.number("<i")),  # BININT
    b"\x8a": _long,  # LONG1
    b"G": lambda m: m.push(m.number(">d")),  # BINFLOAT
    b"X": _text,  # BINUNICODE
    b"(": lambda m: m.marks.append(len(m.stack)),  # MARK
    b")": lambda m: m.push(()),  # EMPTY_TUPLE
    b"t": lambda m: m.push(tuple(m.pop_mark())),  # TUPLE
    b"\x85": lambda m: m.tuple_(1),  # TUPLE1
    b"\x86": lambda m: m.tuple_(2),  # TUPLE2
    b"\x87": lambda m: m.tuple_(3),  # TUPLE3
    b"]": lambda m: m.push([]),  # EMPTY_LIST
    b"a": lambda m: m.append([m.pop()]),  # APPEND
    b"e": lambda m: m.append(m.pop_mark()),  # APPENDS
    b"}": lambda m: m.push({}),  # EMPTY_DICT
    b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),  # SETITEM
    b"u": lambda m: m.set_items(m.pop_mark()),  # SETITEMS
    b"Q": _Machine.persistent,  # BINPERSID
    b"R": _Machine.reduce,  # REDUCE
    b"\x81": _Machine.new_object,  # NEWOBJ
    b"b": _Machine.build,  # BUILD
}
