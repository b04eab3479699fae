"""Pickles of known names in the wrong places, out of their storages, or too big: all refused."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest

from convert.readers import pickles
from convert.readers.torch_bin import open_torch_bin
from tests.convert.readers.forge import (
    ORDERED_DICT,
    PROTO,
    call,
    dict_,
    integer,
    integers,
    name,
    refuse,
    storage,
    tensor,
    text,
    tuple_,
    write_bin,
)

SYSTEM = name("os", "system")
NAMESPACE = name("argparse", "Namespace")

HOOKED = ORDERED_DICT + b")R(" + text("hook") + NAMESPACE + b"u"
TYPED, UNTYPED = storage("FloatStorage"), storage(name("torch.storage", "UntypedStorage"))
V3 = "_rebuild_tensor_v3"
UINT16 = name("torch", "uint16")

# Known names in the wrong places.
MISUSED = {
    "OrderedDict of items": (
        call(ORDERED_DICT, b"]"),
        r"calling collections\.OrderedDict with \(list\)",
    ),
    "a storage type called": (
        call(name("torch", "FloatStorage"), integer(2**40)),
        r"calling torch\.FloatStorage with \(int\)",
    ),
    "a dtype called": (call(UINT16), r"calling torch\.uint16"),
    "Namespace called": (call(NAMESPACE, b"}"), r"calling argparse\.Namespace"),
    "text called": (call(text("eval")), "calling a str"),
    "a tensor called": (call(tensor()), "calling a pickledtensor"),
    "arguments that are a list": (ORDERED_DICT + b"]R", r"calling a collections\.OrderedDict"),
    "Namespace with arguments": (NAMESPACE + tuple_(b"}") + b"\x81", r"making a argparse"),
    "OrderedDict as an object": (ORDERED_DICT + b")\x81", r"making a collections\.OrderedDict"),
    "attributes of a tensor": (tensor() + b"}b", "adding to a pickledtensor"),
    "attributes of a dict": (b"}}b", "adding to a dict"),
    "attributes of a function": (
        name("torch._utils", "_rebuild_tensor_v2") + dict_(__code__=b"N") + b"b",
        "adding to a torch._utils._rebuild_tensor_v2",
    ),
    "class of an OrderedDict": (
        ORDERED_DICT + b")R" + dict_(__class__=NAMESPACE, keys=b"N") + b"b",
        "setting attributes '__class__', 'keys'",
    ),
    "slots": (ORDERED_DICT + b")R" + tuple_(b"N", b"}") + b"b", "attributes that are a tuple"),
    "items of a tuple": (b")K\1K\1s", "adding to a tuple"),
    "values of a dict": (b"}K\1a", "adding to a dict"),
    "hooks": (tensor(hooks=HOOKED), "a tensor with backward hooks"),
    "hooks that are a dict": (tensor(hooks=b"}"), "a tensor with backward hooks"),
    "hooks of a parameter": (
        call(name("torch._utils", "_rebuild_parameter"), tensor(), b"\x88", HOOKED),
        "a tensor with backward hooks",
    ),
    "a parameter of a dict": (
        call(name("torch._utils", "_rebuild_parameter"), b"}", b"\x88", ORDERED_DICT + b")R"),
        r"_rebuild_parameter with \(dict, bool, ordereddict\)",
    ),
    "a negative view": (tensor(more=(dict_(neg=b"\x88"),)), "a conjugate or negative view"),
    "a tensor of five arguments": (
        call(name("torch._utils", "_rebuild_tensor_v2"), storage(), b"K\0", b")", b")", b"\x89"),
        r"_rebuild_tensor_v2 with \(pickledstorage, int, tuple, tuple, bool\)",
    ),
    "a tensor on text": (tensor(text("0")), "a tensor on a str, which is not a storage"),
    "a tensor on a tensor": (tensor(tensor()), "a tensor on a pickledtensor"),
    "a tensor on a tuple": (tensor(TYPED[:-1]), "a tensor on a tuple"),
    "a list of sizes": (tensor(shape=b"]"), "shape or strides are a list"),
    "sizes that are text": (tensor(shape=tuple_(text("2"), text("3"))), "are not integers"),
    "a bool as an offset": (tensor(offset=b"\x88"), "are not integers"),
    "a float as a stride": (tensor(strides=tuple_(b"G" + bytes(8), b"K\1")), "are not integers"),
    "v2 on untyped bytes": (tensor(UNTYPED), "without a type on untyped bytes"),
    "v3 on a typed storage": (
        tensor(TYPED, function=V3, more=(UINT16,)),
        "of one type on a storage of another",
    ),
    "v3 without a type": (tensor(UNTYPED, function=V3), r"_rebuild_tensor_v3 with \("),
    "v3 of a function": (tensor(UNTYPED, function=V3, more=(ORDERED_DICT,)), "_v3 with"),
    # References outside the file: only a tuple that names a storage is one.
    "a reference by text": (b"Pmodel\n", "the instruction PERSID"),
    "a reference to a path": (text("/etc/passwd") + b"Q", r"not a storage \(str\)"),
    "a module": (tuple_(text("module"), NAMESPACE, text("x"), text("y")) + b"Q", "not a storage"),
    "a storage without a size": (
        tuple_(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu")) + b"Q",
        "not a storage",
    ),
    "a storage of a view": (TYPED[:-2] + b"NtQ", "not a storage"),
    "a storage that is a dict": (storage(ORDERED_DICT), r"storage of type collections\.Ord"),
    "a storage that is a dtype": (storage(UINT16), r"storage of type torch\.uint16"),
    "a storage of negative size": (storage(size=-1), "not a storage"),
    "a storage keyed by a number": (TYPED.replace(text("0"), b"K\0"), "not a storage"),
    # Keys.
    "a tuple as a key": (b"})K\1s", "a key that is a tuple"),
    "None as a key": (b"}NK\1s", "a key that is a nonetype"),
    "a key set twice": (b"}(" + (text("w") + tensor()) * 2 + b"u", "setting the key 'w' twice"),
    "a key without a value": (b"}(" + text("w") + b"u", "a key without a value"),
    # Broken.
    "underflow": (b"R", "a value that is not there"),
    "underflow below a mark": (b"K\1(\x85", "a value that is not there"),
    "no mark": (b"t", "a mark that is not there"),
    "nothing": (b"", "values or bytes left over"),
    "two values": (b"NN", "values or bytes left over"),
    "an open mark": (b"N(", "values or bytes left over"),
    "a second pickle behind": (b"}." + call(SYSTEM, text("true")), "values or bytes left over"),
    "a second beginning": (b"}" + PROTO, "it begins twice"),
    "a forgotten value": (b"h\7", "recalls a value that it never stored"),
    "text that is not UTF-8": (b"X\1\0\0\0\xff", "text that is not UTF-8"),
    "text longer than the file": (b"X\xff\xff\xff\xff", "ends in the middle"),
    "a name without an end": (b"c" + b"a" * 300, "a name does not end"),
    "an unknown instruction": (b"\xff", "the unknown instruction 0xff"),
}  # fmt: skip


@pytest.mark.parametrize("trick", MISUSED)
def test_known_names_in_the_wrong_places_are_refused(trick: str, tmp_path: Path):
    value, reason = MISUSED[trick]
    refuse(tmp_path / "model.bin", value, reason)


@pytest.mark.parametrize(
    "instruction",
    [
        "DUP", "POP", "POP_MARK", "FRAME", "MEMOIZE", "NEWOBJ_EX", "BYTEARRAY8", "NEXT_BUFFER",
        "READONLY_BUFFER", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINUNICODE8",
        "SHORT_BINUNICODE", "BINSTRING", "STRING", "UNICODE", "INT", "LONG", "LONG4", "FLOAT",
        "GET", "PUT", "LIST", "DICT", "EMPTY_SET", "ADDITEMS", "FROZENSET",
    ],
)  # fmt: skip
def test_instructions_that_torch_does_not_write_are_refused(instruction: str, tmp_path: Path):
    codes = {known: code for code, known in pickles._INSTRUCTION_NAMES.items()}
    value = codes[instruction].encode("latin-1") + b"\x7f" * 8
    refuse(tmp_path / "model.bin", value, f"the instruction {instruction};")


# Tensors that do not lie in their storage of six float32.
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (tensor(shape=(3, 3)), "'w' reaches element 8 of a storage of 6"),
        (tensor(offset=1), "reaches element 6 of a storage of 6"),
        (tensor(strides=(4, 1)), "reaches element 6 of a storage of 6"),
        (tensor(strides=(0, 0), shape=(2, 4)), "'w' repeats elements: it has 8"),
        (tensor(strides=(0, 0), shape=(2**40, 2**40)), "'w' repeats elements"),
        (tensor(offset=-1), "negative or beyond"),
        (tensor(shape=(-2, -3)), "negative or beyond"),
        (tensor(strides=(-3, 1)), "negative or beyond"),
        (tensor(shape=(2**63, 2)), "negative or beyond"),
        (tensor(strides=(2**61, 1)), "negative or beyond"),
        (tensor(offset=2**2000), "negative or beyond"),
        (tensor(shape=(2**2000, 0)), "negative or beyond"),
        (tensor(shape=(2,)), "has 1 axes and 2 strides"),
        (tensor(shape=(1,) * 33, strides=(1,) * 33), "has 33 axes and 33 strides, at most 32"),
        (tensor(storage(key="1")), "in storage '1', which the file lacks"),
        (tensor(storage(key="../version")), r"in storage '\.\./version', which the file lacks"),
        (tensor(storage(key="0/../0")), "which the file lacks"),
        (tensor(storage(size=7)), "a storage of 24 bytes that is said to have another size"),
        (tensor(storage(size=5)), "a storage of 24 bytes that is said to have another size"),
        (tensor(storage("DoubleStorage")), "a storage of 24 bytes that is said to have another"),
        (
            tensor(storage(name("torch.storage", "UntypedStorage"), size=24), function=V3,
                   more=(UINT16,), shape=(13,), strides=(1,)),
            "reaches element 12 of a storage of 12",
        ),
    ],
)  # fmt: skip
def test_tensors_outside_their_storage_are_refused(value: bytes, reason: str, tmp_path: Path):
    refuse(tmp_path / "model.bin", dict_(w=value), reason)


@pytest.mark.parametrize("key", ["", "a\nb", "\x1b[31m", "k" * 513, "\u202ereversed"])
def test_keys_that_a_terminal_should_not_see_are_refused(key: str, tmp_path: Path):
    value = b"}" + text(key) + tensor() + b"s"
    refuse(tmp_path / "model.bin", value, r"unusable tensor names \(1\)")


# Small pickles that take an unpickler, or what reads its result, out of time, stack or memory.
DOUBLED = b")" + b"q\0h\0\x86" * 2000
DEEP = 500_000
BOMBS = {
    "a tuple doubled 2,000 times, as a key": (b"}" + DOUBLED + b"Ns", "a key that is a tuple"),
    "a tuple doubled 2,000 times": (dict_(w=DOUBLED), r"'w \(tuple\)'"),
    "a tuple doubled 2,000 times, as a shape": (tensor(shape=DOUBLED), "are not integers"),
    "metadata doubled 2,000 times": (tensor(more=(DOUBLED,)), "with metadata"),
    "a list that contains itself": (b"]q\0h\0a", "holds a list"),
    "a dict that contains itself": (b"}q\0" + text("w") + b"h\0s", r"'w \(dict\)'"),
    "nested tuples": (b")" + b"\x85" * DEEP, "holds a tuple"),
    "nested lists": (b"]" * DEEP + b"a" * (DEEP - 1), "holds a list"),
    "nested dicts": (b"}" + b"K\1}" * DEEP + b"s" * DEEP, "not tensors"),
    "marks": (b"(" * DEEP, "values or bytes left over"),
    "instructions": (b"N" * 2_000_001, "more than 2000000 instructions"),
    "colliding keys": (
        b"}(" + b"".join(integer(k * (2**61 - 1)) + b"N" for k in range(1, 1000)) + b"u",
        "a key that is a int",
    ),
    "offenders": (
        b"}(" + b"".join(b"J" + struct.pack("<i", k) + b"N" for k in range(100_000)) + b"u",
        r"not tensors: \(100000\).* and 98000 more",
    ),
    "bytes": (b"N" * pickles.MAX_BYTES, "takes 16777219 bytes; allowed: at most 16777216"),
    "a memo of four billion": (b"Nr\xff\xff\xff\xff", "holds a NoneType"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_do_not_go_off(bomb: str, tmp_path: Path):
    value, reason = BOMBS[bomb]
    started = time.process_time()
    refuse(tmp_path / "model.bin", value, reason)
    assert time.process_time() - started < 20


def test_the_pickles_here_are_otherwise_sound(tmp_path: Path):
    # So that no test above passes because of a slip of the forge.
    value = dict_(
        v2=tensor(),
        v3=tensor(storage(name("torch.storage", "UntypedStorage"), "1", 4), function=V3,
                  more=(UINT16,), shape=(2,), strides=(1,)),
        parameter=call(
            name("torch._utils", "_rebuild_parameter"), tensor(), b"\x88", ORDERED_DICT + b")R"
        ),
    )  # fmt: skip
    path = write_bin(tmp_path / "model.bin", value, storages={"0": bytes(24), "1": bytes(4)})
    stored = open_torch_bin(path)
    assert [t.shape for t in stored.values()] == [(2, 3), (2,), (2, 3)]
    assert [t.dtype for t in stored.values()] == [np.float32, np.uint16, np.float32]
    assert integers((1, 2)) == tuple_(integer(1), integer(2))
