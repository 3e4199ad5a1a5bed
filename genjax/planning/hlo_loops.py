"""How often the loops of a compiled program run.

XLA's compilers for CPUs and GPUs write it behind a loop (`known_trip_count`); that for TPUs may
not. Then a loop that counts from one constant to another tells it by its parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from genjax.planning import hlo_text as text_of
from genjax.planning.hlo_text import Body, Instruction, Module, root

_SAME = {"copy", "bitcast", "convert", "reshape", "copy-start", "copy-done"}


class Carried(NamedTuple):
    """The number at an index of what a loop carries, as a turn begins, and what is added to it."""

    index: int
    added: int


Number = int | Carried | None


class Loop(NamedTuple):
    """A loop, and the computation that it stands in."""

    instruction: Instruction
    inside: str


def loops(module: Module) -> dict[str, Loop]:
    """The loops of a module, by the names of their bodies and of their conditions."""
    return {
        name: Loop(instruction, computation)
        for computation, body in module.computations.items()
        for instruction in body.values()
        if instruction.opcode == "while"
        for name in text_of.called(instruction, "body", "condition")
    }


def turns(instruction: Instruction, module: Module, known: Mapping[str, Loop]) -> int | None:
    """How often a loop runs, at most if it may end early; None if the program does not tell."""
    written = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.rest)
    if written is not None:
        return int(written[1])
    (condition,) = text_of.called(instruction, "condition")
    (body,) = text_of.called(instruction, "body")
    left, right, direction = _comparison(module.computations[condition], module)
    if direction == "GT":
        left, right, direction = right, left, "LT"
    if direction != "LT" or not isinstance(left, Carried) or right is None:
        return None
    first = _start(left.index, body, module, known)
    last = right
    if isinstance(right, Carried):
        start = (
            _start(right.index, body, module, known) if _kept(right.index, body, module) else None
        )
        last = None if start is None else start + right.added
    step = _next(left.index, body, module)
    if first is None or last is None or not isinstance(step, Carried) or step.index != left.index:
        return None
    if step.added <= 0:
        return None
    return max(0, -(-(last - first - left.added) // step.added))


def _comparison(condition: Body, module: Module) -> tuple[Number, Number, str]:
    """The two sides of what a condition compares, and how: of the number that it counts with."""
    undecided: list[tuple[Instruction, Body, Mapping[str, Number]]] = [
        (root(condition), condition, {})
    ]
    for i, body, arguments in undecided:  # which grows by the parts of fusions and of each "and"
        if i.opcode in ("fusion", "call"):
            (name,) = text_of.called(i, "calls", "to_apply")
            inner = module.computations[name]
            undecided.append((root(inner), inner, _arguments(i, body, module, arguments)))
        elif i.opcode == "and":
            undecided += [(body[name], body, arguments) for name in i.operands]
        elif i.opcode == "compare":
            left, right = (_number(name, body, module, arguments) for name in i.operands)
            direction = re.search(r"direction=(\w+)", i.rest)
            if direction is not None and left is not None and right is not None:
                return left, right, direction[1]
    return None, None, ""


def _arguments(
    caller: Instruction, body: Body, module: Module, arguments: Mapping[str, Number]
) -> dict[str, Number]:
    """The numbers that a fusion takes, by the names of its parameters."""
    (name,) = text_of.called(caller, "calls", "to_apply")
    return {
        i.name: _number(caller.operands[int(i.literal)], body, module, arguments)
        for i in module.computations[name].values()
        if i.opcode == "parameter"
    }


def _number(name: str, body: Body, module: Module, arguments: Mapping[str, Number]) -> Number:
    """A number of a loop's condition or body: a constant, or carried by the loop."""
    i = body[name]
    if name in arguments:
        return arguments[name]
    if i.opcode == "constant":
        return int(i.literal) if re.fullmatch(r"-?\d+", i.literal) else None
    if i.opcode in _SAME:
        return _number(i.operands[0], body, module, arguments)
    if i.opcode == "get-tuple-element":
        source = body[i.operands[0]]
        index = text_of.number(i.rest, "index", 0)
        if source.opcode == "tuple":
            return _number(source.operands[index], body, module, arguments)
        return Carried(index, 0) if source.opcode == "parameter" and not arguments else None
    if i.opcode in ("add", "subtract"):
        left, right = (_number(operand, body, module, arguments) for operand in i.operands)
        if isinstance(left, int) and i.opcode == "add":
            left, right = right, left
        if left is None or not isinstance(right, int):
            return None
        right = right if i.opcode == "add" else -right
        return left + right if isinstance(left, int) else Carried(left.index, left.added + right)
    if i.opcode in ("fusion", "call"):
        (callee,) = text_of.called(i, "calls", "to_apply")
        inner = module.computations[callee]
        return _number(root(inner).name, inner, module, _arguments(i, body, module, arguments))
    return None


def _next(index: int, body: str, module: Module) -> Number:
    """What a turn makes of the number at an index of what is carried."""
    instructions = module.computations[body]
    carried = root(instructions)
    if carried.opcode != "tuple":
        return None
    return _number(carried.operands[index], instructions, module, {})


def _kept(index: int, body: str, module: Module) -> bool:
    return _next(index, body, module) == Carried(index, 0)


def _start(index: int, body: str, module: Module, known: Mapping[str, Loop]) -> int | None:
    """The number at an index when a loop begins; also one that the loops around it only carry."""
    loop = known[body]
    outside = module.computations[loop.inside]
    carried = outside[loop.instruction.operands[0]]
    if carried.opcode != "tuple":
        return None
    number = _number(carried.operands[index], outside, module, {})
    if isinstance(number, Carried):
        if loop.inside not in known or not _kept(number.index, loop.inside, module):
            return None
        start = _start(number.index, loop.inside, module, known)
        return None if start is None else start + number.added
    return number
