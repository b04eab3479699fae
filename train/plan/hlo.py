"""Reads the optimised HLO text of TPU programs.

A shape with `S(1)` in its layout lies in the core's own memory (VMEM), others in the chip's main
memory (HBM).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}
SHAPE = re.compile(r"(pred|bf16|[suf]\d+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_BRANCHES = ("true_computation", "false_computation")

ENTRY = "ENTRY"


@dataclass(frozen=True)
class Instruction:
    """One line of HLO.

    Attributes:
      name: what it defines.
      shape: its result, as text.
      op: operation.
      rest: operands and attributes, as text.
      root: whether it is its computation's result.
    """

    name: str
    shape: str
    op: str
    rest: str
    root: bool

    @property
    def operands(self) -> list[str]:
        """Names of its operands."""
        return re.findall(r"%([\w.\-]+)", self.rest.split(")")[0])

    def called(self, key: str) -> str | None:
        """The computation that an attribute names."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.rest)
        return found.group(1) if found else None

    def number(self, key: str) -> int | None:
        """The number that follows an attribute's name, however it is written."""
        found = re.search(rf"{key}[^0-9]*(\d+)", self.rest)
        return int(found.group(1)) if found else None

    @property
    def branches(self) -> list[str]:
        """The computations that a conditional chooses from."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        names = re.findall(r"%?([\w.\-]+)", listed.group(1)) if listed else []
        return names + [name for key in _BRANCHES if (name := self.called(key))]


Program = dict[str, list[Instruction]]


def computations(text: str) -> Program:
    """The instructions of every computation, the entry's also under the name `ENTRY`."""
    found: Program = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = found[header.group(2)] = []
            if header.group(1):
                found[ENTRY] = current
        elif match := _INSTRUCTION.match(line):
            root, name, shape, op, rest = match.groups()
            current.append(Instruction(name, shape, op, rest, root is not None))
    return found


def arrays(shape: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(dtype, dimensions, layout) of each array of a shape."""
    return [
        (kind, tuple(map(int, filter(None, dims.split(",")))), layout)
        for kind, dims, layout in SHAPE.findall(shape)
    ]


def sizes(shape: str) -> list[tuple[int, bool]]:
    """(bytes without padding, whether it lies in HBM) of each array of a shape."""
    return [
        (_BYTES.get(kind, 4) * math.prod(dims), "S(" not in layout)
        for kind, dims, layout in arrays(shape)
    ]


def trip_count(program: Program, loop: Instruction) -> int | None:
    """How often a while loop turns; None where the text does not say.

    The compiler notes it on most loops. Otherwise it is the largest number in the loop's condition
    (which compares a counter with it), or in what the condition calls.
    """
    known = loop.number("known_trip_count")
    if known is not None:
        return known
    condition = program.get(loop.called("condition") or "", [])
    numbers = _constants(condition)
    if not numbers:
        inner = (program.get(i.called("calls") or "", []) for i in condition)
        numbers = [n for instructions in inner for n in _constants(instructions)]
    return max(numbers, default=None)


def _constants(instructions: list[Instruction]) -> list[int]:
    found = (re.match(r"(\d+)\)", i.rest) for i in instructions if i.op == "constant")
    return [int(match.group(1)) for match in found if match]


@dataclass(frozen=True)
class Step:
    """One instruction that runs, and how often.

    Attributes:
      instruction: it.
      times: how often a run of the program reaches it.
    """

    instruction: Instruction
    times: int


def executed(program: Program, name: str = ENTRY, times: int = 1) -> Iterator[Step]:
    """The instructions a core runs one after another, loops' bodies as often as they turn.

    Fused computations are part of the fusion and do not appear. All branches of a conditional do. A
    loop whose turns the text does not tell counts once.
    """
    for i in program[name]:
        yield Step(i, times)
        if i.op == "while":
            turns = trip_count(program, i)
            body = i.called("body") or ""
            yield from executed(program, body, times * (1 if turns is None else turns))
        for branch in i.branches:
            yield from executed(program, branch, times)


def inside(program: Program, i: Instruction) -> Iterator[Instruction]:
    """An instruction and, if it is a fusion or a call, all that is fused into it."""
    yield i
    for j in program.get(i.called("calls") or "", []):
        yield from inside(program, j)
