"""What an optimised program costs, read from its text: cycles, products, collectives, buffers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from train.plan.hlo import Instruction, Program, arrays, executed, inside, sizes, trip_count

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def cycles(program: Program) -> int:
    """The compiler's own estimates, summed over all that runs; custom calls have none."""
    return sum(
        step.times * (step.instruction.number("estimated_cycles") or 0)
        for step in executed(program)
    )


def unknown_loops(program: Program) -> list[str]:
    """Loops whose turns the text does not tell; `cycles` counts their bodies once."""
    return [
        step.instruction.name
        for step in executed(program)
        if step.instruction.op == "while" and trip_count(program, step.instruction) is None
    ]


def custom_calls(program: Program) -> Counter[str]:
    """How often each Pallas kernel runs, by the name of the function that made it."""
    found: Counter[str] = Counter()
    for step in executed(program):
        if step.instruction.op == "custom-call" and "tpu_custom_call" in step.instruction.rest:
            found[re.sub(r"[.\d]+$", "", step.instruction.name)] += step.times
    return found


def dot_flops(program: Program) -> int:
    """Floating-point operations of all matrix products (2 for a multiply-add), on one device.

    The TPU compiler writes products as convolutions. Kernels of Pallas are not among them.
    """
    total = 0
    for step in executed(program):
        for i, shapes in _products(program, step.instruction):
            total += step.times * _product_flops(i, shapes)
    return total


def _products(program: Program, i: Instruction):
    """The products of an instruction, each with the shapes of its own computation."""
    name = i.called("calls")
    if i.op in ("dot", "convolution") or name not in program:
        return
    instructions = program[name]
    shapes = {j.name: j.shape for j in instructions}
    for j in instructions:
        if j.op in ("dot", "convolution"):
            yield j, shapes
        yield from _products(program, j)


def _product_flops(i: Instruction, shapes: dict[str, str]) -> int:
    left, right = (arrays(shapes[name])[0][1] for name in i.operands[:2])
    result = arrays(i.shape)[0][1]
    if i.op == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
        dims = contracted.group(1).split(",") if contracted else []
        return 2 * math.prod(result) * math.prod(left[int(d)] for d in dims if d)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
    if labels is None:
        raise ValueError(f"convolution {i.name} has no dim_labels")
    lhs, rhs, out = labels.groups()
    window = _window(i.rest, sum(c.isdigit() for c in lhs))
    flops = 2 * result[out.index("b")] * result[out.index("f")] * right[rhs.index("i")]
    for d, one in enumerate(window):
        where = str(d)
        flops *= one.pairs(
            left[lhs.index(where)], right[rhs.index(where)], result[out.index(where)]
        )
    return flops


@dataclass(frozen=True)
class Window:
    """A convolution's window along one spatial dimension."""

    stride: int = 1
    low: int = 0
    left_dilation: int = 1
    right_dilation: int = 1

    def pairs(self, size: int, taps: int, places: int) -> int:
        """Pairs of a place of the result and a tap that meet a real element of the input."""
        count = 0
        reach = (size - 1) * self.left_dilation
        for tap in range(taps):
            first = tap * self.right_dilation - self.low
            if self.left_dilation == 1:
                # Places p with 0 <= first + p * stride <= reach.
                lowest = max(0, -(first // self.stride))
                highest = min(places - 1, (reach - first) // self.stride)
                count += max(0, highest - lowest + 1)
                continue
            count += sum(
                0 <= first + p * self.stride <= reach
                and (first + p * self.stride) % self.left_dilation == 0
                for p in range(places)
            )
        return count


def _window(rest: str, dims: int) -> list[Window]:
    text = re.search(r"window=\{([^}]*)\}", rest)
    found = dict(part.split("=") for part in text.group(1).split()) if text else {}

    def values(key: str, default: str) -> list[str]:
        return found[key].split("x") if key in found else [default] * dims

    return [
        Window(int(stride), int(pad.split("_")[0]), int(left), int(right))
        for stride, pad, left, right in zip(
            values("stride", "1"),
            values("pad", "0_0"),
            values("lhs_dilate", "1"),
            values("rhs_dilate", "1"),
            strict=True,
        )
    ]


@dataclass(frozen=True)
class Collectives:
    """What one device sends to others in a step.

    Attributes:
      bytes: see `collectives`.
      asynchronous: bytes of those that run while the core computes.
      count: collectives that run, by kind.
    """

    bytes: int
    asynchronous: int
    count: dict[str, int]

    @property
    def async_fraction(self) -> float:
        """Share of the bytes that are asynchronous; 1 where there are none."""
        return self.asynchronous / self.bytes if self.bytes else 1.0


def collectives(program: Program) -> Collectives:
    """The collectives of a program.

    The bytes are those that pass each device in a ring, but for the factor (n - 1) / n: the
    gathered array of an all-gather, the array before a reduce-scatter, twice the array of an
    all-reduce, the array of an all-to-all or a permutation.

    A collective is asynchronous if it is a pair of start and done, or if its start is fused with
    other work (`AsyncCollectiveStart`); its parts then share one channel and count once.
    """
    found: dict[str, tuple[str, int, int]] = {}
    overlapped: set[str] = set()
    for step in executed(program):
        parts = list(inside(program, step.instruction))
        started = any("AsyncCollectiveStart" in i.rest for i in parts)
        for i in parts:
            kind = i.op.removesuffix("-start")
            if kind not in _COLLECTIVES:
                continue
            channel = i.number("channel_id")
            key = i.name if channel is None else str(channel)
            if started or i.op.endswith("-start"):
                overlapped.add(key)
            # A loop's collective may be started once before the loop as well.
            if key not in found or found[key][2] < step.times:
                found[key] = kind, _moved(i, kind), step.times
    count: Counter[str] = Counter()
    total = asynchronous = 0
    for key, (kind, size, times) in found.items():
        count[kind] += times
        total += size * times
        asynchronous += size * times if key in overlapped else 0
    return Collectives(total, asynchronous, dict(count))


def _moved(i: Instruction, kind: str) -> int:
    """Bytes of one run of a collective; a start's result may hold its operand beside its result."""
    every = [size for size, _ in sizes(i.shape)]
    if i.op.endswith("-start"):
        every = [max(every, default=0)] if kind != "all-reduce" else every
    total = sum(every)
    if kind == "reduce-scatter":
        group = re.search(r"replica_groups=\{\{([\d,]+)\}", i.rest)
        ways = re.search(r"replica_groups=\[\d+,(\d+)\]", i.rest)
        total *= len(group.group(1).split(",")) if group else int(ways.group(1)) if ways else 1
    return 2 * total if kind == "all-reduce" else total


def buffers(program: Program) -> Counter[tuple[int, ...]]:
    """Dimensions of every array that the program has as the result of something that runs."""
    found: Counter[tuple[int, ...]] = Counter()
    for step in executed(program):
        found.update({dims for _, dims, _ in arrays(step.instruction.shape)})
    return found


def score_buffers(program: Program, length: int, heads: int, width: int) -> list[tuple[int, ...]]:
    """Arrays that hold [length, length] numbers or more, as attention scores would.

    Args:
      program: the program.
      length: T, slots of a row.
      heads: of a device.
      width: of the model; where it equals T, matrices and states have two such dimensions as well,
        and only scores of all heads are told from them.
    """
    found = [dims for dims in buffers(program) if dims.count(length) >= 2]
    if length != width:
        return found
    return [d for d in found if heads in d and math.prod(d) >= heads * length**2]


def logit_buffers(
    program: Program, chunk: int, words: int, widths: Collection[int]
) -> list[tuple[int, ...]]:
    """Arrays that hold logits of half a chunk of targets more than a chunk, or of more.

    Args:
      program: the program.
      chunk: targets of a device whose logits may exist at the same time.
      words: of the vocabulary, on a device.
      widths: rows of the matrices that have so many columns too, the head and the embeddings; so
        many targets are not told from a matrix.
    """
    return [
        dims
        for dims in buffers(program)
        if words in dims
        and math.prod(dims) >= 1.5 * chunk * words
        and math.prod(dims) // words not in widths
    ]
