"""What the optimised HLO text of a TPU program says about the memory traffic of its loop.

Only what is in the chip's main memory (HBM) counts. A shape with `S(1)` in its layout lies in the
core's own memory (VMEM); `copy-start` and `slice-start` between the two are how weights come in.
"""

from __future__ import annotations

import re

from train.plan.hlo import ENTRY, Instruction, Program, arrays, sizes

# Names for values that are elsewhere; they move nothing.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "copy-done",
    "slice-done",
    "after-all",
}


def hbm_bytes(shape: str) -> int:
    """Bytes of the arrays of a shape that lie in HBM."""
    return sum(size for size, outside in sizes(shape) if outside)


def loop_body(program: Program) -> list[Instruction]:
    """The body of the only loop of the entry computation.

    Raises:
      ValueError: there is none, or more than one.
    """
    loops = [i for i in program[ENTRY] if i.op == "while"]
    if len(loops) != 1:
        raise ValueError(f"the program has {len(loops)} loops where one was expected")
    return program[loops[0].called("body") or ""]


def loop_bytes(program: Program) -> int:
    """Bytes that one turn of the loop reads from and writes to HBM.

    Each operand of each operation counts whole, as often as it is read; a buffer that is updated in
    place counts what is written.
    """
    body = loop_body(program)
    shape_of = {i.name: i.shape for i in body}
    total = 0
    for i in body:
        if i.op in _FREE:
            continue
        if i.op in ("copy-start", "slice-start"):
            # (what is read, what is written, context) in either order: the smaller is what moves,
            # once on each side that is in HBM.
            arrays = [a for a in sizes(i.shape) if a[0] > 8]
            moved = min((size for size, _ in arrays), default=0)
            total += moved * sum(outside for _, outside in arrays)
            continue
        inside = program.get(i.called("calls") or "", [])
        updates = [j for j in [i, *inside] if j.op == "dynamic-update-slice"]
        if updates:
            local = {j.name: j.shape for j in inside} | (shape_of if not inside else {})
            written = sum(sizes(local[j.operands[1]])[0][0] for j in updates)
            buffers = {_dims(i.shape)}
            total += written + sum(
                hbm_bytes(shape_of.get(name, ""))
                for name in i.operands
                if _dims(shape_of.get(name, "")) not in buffers
            )
            continue
        total += hbm_bytes(i.shape)
        total += sum(hbm_bytes(shape_of.get(name, "")) for name in i.operands)
    return total


def _dims(shape: str) -> str:
    """A shape without its layout."""
    return re.sub(r"\{[^{}]*\}", "", shape)


def largest_copy(program: Program) -> int:
    """Bytes of the largest copy in the loop; bringing an array from HBM into VMEM is none."""
    largest = 0
    for i in loop_body(program):
        inside = program.get(i.called("calls") or "", [])
        kinds = {i.op} | {j.op for j in inside if j.root}
        if i.op == "copy-start":
            target, source = sizes(i.shape)[:2]
            if target[1] or not source[1]:
                largest = max(largest, source[0])
        elif kinds & {"copy", "transpose"}:
            largest = max(largest, *(size for size, _ in sizes(i.shape)))
    return largest


def entry_shapes(text: str) -> list[str]:
    """Shapes of the program's arguments, layouts left out."""
    layout = text.split("entry_computation_layout={(", 1)[1].split(")->", 1)[0]
    # Tiles put brackets inside the layouts, but no second `)->`.
    return [f"{kind}[{','.join(map(str, dims))}]" for kind, dims, _ in arrays(layout)]


def aliased(text: str) -> set[int]:
    """Numbers of the arguments whose buffers the results take over."""
    head = text.split("entry_computation_layout", 1)[0]
    return {int(n) for n in re.findall(r"\{\d*\}: \((\d+), \{\}", head)}
