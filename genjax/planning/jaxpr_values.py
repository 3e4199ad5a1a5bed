"""What a program (jaxpr) tells before it runs: constants, numbers made of them, turns of loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

# Operations with programs that are run otherwise than once, with their operands as they are.
_NO_CALLS = {"scan", "while", "cond", "pallas_call"}
# Operations that pass a number on, as far as the length of a loop may depend on it.
_SAME = {"device_put", "copy", "copy_p", "convert_element_type"}
_ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum}
_ARITHMETIC["min"] = np.minimum


class _Copies(NamedTuple):
    """An array of which each device has the same part."""

    part: Any


def _results(equation: JaxprEqn, known: dict[Var, Any]) -> list[Any]:
    """The values of an equation's results: copies, numbers made of numbers; None if unknown."""
    name = equation.primitive.name
    values = [value_of(v, known) for v in equation.invars]
    if name in _SAME and len(values) == 1:
        return values
    if name in _ARITHMETIC and equation.outvars[0].aval.shape == ():
        return [None if any(v is None for v in values) else _ARITHMETIC[name](*values)]
    if name == "shard_map":
        each = equation.params["jaxpr"]
        inside = known_in(each, on_device(values, each))
        parts = [value_of(v, inside) for v in each.outvars]
        return [
            part if part is None or np.shape(part) == v.aval.shape else _Copies(part)
            for part, v in zip(parts, equation.outvars, strict=True)
        ]
    program, constants = called(equation)
    if program is not None and name not in _NO_CALLS:
        inside = known_in(program, constants + values)
        return [value_of(v, inside) for v in program.outvars]
    return [None] * len(equation.outvars)


def on_device(values: Sequence[Any], program: Jaxpr) -> list[Any]:
    """What is known on a device of the operands of its program: those that all devices share."""
    parts = [value.part if isinstance(value, _Copies) else value for value in values]
    return [
        part if part is not None and np.shape(part) == inner.aval.shape else None
        for part, inner in zip(parts, program.invars, strict=True)
    ]


def known_in(jaxpr: Jaxpr, values: Sequence[Any]) -> dict[Var, Any]:
    """What is known of a program's variables, given what is of its constants and inputs."""
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    known = {v: value for v, value in zip(inputs, values, strict=True) if value is not None}
    for equation in jaxpr.eqns:
        results = zip(equation.outvars, _results(equation, known), strict=True)
        known |= {v: value for v, value in results if value is not None}
    return known


def value_of(variable: Var | Literal, known: dict[Var, Any]) -> Any:
    """The value of a variable or constant; None if it is unknown."""
    return variable.val if isinstance(variable, Literal) else known.get(variable)


def called(equation: JaxprEqn) -> tuple[Jaxpr | None, list[Any]]:
    """The program that an equation calls with its own operands, if it does, and its constants."""
    for value in equation.params.values():
        if isinstance(value, (ClosedJaxpr, Jaxpr)):
            inner, constants = (
                (value.jaxpr, list(value.consts)) if isinstance(value, ClosedJaxpr) else (value, [])
            )
            if _shapes(inner.invars) == _shapes(equation.invars) and (
                _shapes(inner.outvars) == _shapes(equation.outvars)
            ):
                return inner, constants
    return None, []


def _shapes(variables: Sequence[Var | Literal]) -> list[tuple[int, ...]]:
    return [getattr(v.aval, "shape", None) for v in variables]


def turns(
    condition: ClosedJaxpr, body: ClosedJaxpr, constants: list[Any], start: list[Any]
) -> int | None:
    """The turns of a loop that counts up from a known number to a known number, else None.

    Of a loop that may end before that, by another condition, the most turns.
    """
    test = condition.jaxpr
    known = dict(zip(test.constvars, condition.consts, strict=True))
    known |= dict(zip(test.invars, [*constants, *start], strict=True))
    carried = test.invars[len(constants) :]
    made_by = {v: equation for equation in test.eqns for v in equation.outvars}
    conditions = [made_by.get(v) for v in test.outvars if isinstance(v, Var)]
    for equation in conditions:  # which grows by the parts of each "and"
        if equation is not None and equation.primitive.name in ("and", "convert_element_type"):
            conditions += [made_by.get(v) for v in equation.invars if isinstance(v, Var)]
        if equation is None or equation.primitive.name != "lt":
            continue
        index, bound = equation.invars
        first, last = value_of(index, known), value_of(bound, known)
        if index not in carried or first is None or last is None:
            continue
        if bound in carried and not _kept(body.jaxpr, carried.index(bound)):
            continue
        step = _step(body.jaxpr, carried.index(index))
        if step is not None and step > 0:
            return max(0, math.ceil((int(last) - int(first)) / step))
    return None


def _kept(body: Jaxpr, index: int) -> bool:
    """Whether a turn leaves what is carried at `index` as it is."""
    return body.outvars[index] is body.invars[len(body.invars) - len(body.outvars) + index]


def _step(body: Jaxpr, index: int) -> int | None:
    """By how much a turn raises the carried number at `index`, if by a constant."""
    carried = body.invars[len(body.invars) - len(body.outvars) + index]
    for equation in body.eqns:
        if equation.outvars[0] is body.outvars[index] and equation.primitive.name == "add":
            for number, step in (equation.invars, equation.invars[::-1]):
                if number is carried and isinstance(step, Literal):
                    return int(step.val)
    return None
