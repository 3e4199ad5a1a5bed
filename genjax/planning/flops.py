"""The FLOPs of a program, counted from its jaxpr.

Every analysis of XLA's counts the body of a loop once, and hides the products that a fused kernel
makes. A jaxpr has the shapes of all products and the length of every loop, whatever the chip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from genjax.planning.jaxpr_products import PRODUCTS, UNKNOWN, elementwise, number_of_products
from genjax.planning.jaxpr_values import called, known_in, on_device, turns, value_of


class Flops(NamedTuple):
    """What a program computes, on all devices together.

    A multiplication and an addition count as 2. A convolution's products with the zeros around its
    image count, as chips compute them; those with the zeros between pixels of a dilated image do
    not.

    Attributes:
      total: of all products and convolutions that are executed.
      recomputed: those of `total` that repeat what the forward pass has computed: under
        `jax.checkpoint`, whose repeated operations JAX marks by their scope, and inside the
        backward pass of fused attention.
      elementwise: operations on single floating point numbers, such as sums and exponentials; no
        part of `total`.
      unknown_loops: the loops whose number of turns cannot be read from the program.
      uncounted: the operations that may contain products, of which this module knows nothing.
    """

    total: float = 0.0
    recomputed: float = 0.0
    elementwise: float = 0.0
    unknown_loops: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()

    @property
    def model(self) -> float:
        """The model's own FLOPs: what the same step executes if it recomputes nothing."""
        return self.total - self.recomputed


def count(jaxpr: ClosedJaxpr | Jaxpr, trips: int = 1) -> Flops:
    """Counts what `jaxpr` executes, without what none of its results needs.

    The jaxpr is of the whole program, ahead of its partition over devices. Of the branches of a
    condition the most expensive one counts.

    Args:
      jaxpr: of a step, as `jax.make_jaxpr(step)(state, batch)` and `jax.jit(step).trace(...).jaxpr`
        give it.
      trips: how often a loop is taken to run that does not say so.
    """
    closed = jaxpr if isinstance(jaxpr, ClosedJaxpr) else None
    inner = jaxpr.jaxpr if closed else jaxpr
    constants = list(closed.consts) if closed else [None] * len(inner.constvars)
    values = constants + [None] * len(inner.invars)
    return _walk(inner, values, [True] * len(inner.outvars), _Context(trips, False))[0]


class _Context(NamedTuple):
    """How often a loop of unknown length runs, and whether all of this is recomputed."""

    trips: int
    again: bool


def _plus(a: Flops, b: Flops) -> Flops:
    joined = (tuple(dict.fromkeys(x + y)) for x, y in zip(a[3:], b[3:], strict=True))
    return Flops(*(x + y for x, y in zip(a[:3], b[:3], strict=True)), *joined)


def _scaled(a: Flops, factor: float) -> Flops:
    return Flops(*(factor * x for x in a[:3]), *a[3:])


# ---- Walking


def _walk(
    jaxpr: Jaxpr, values: Sequence[Any], wanted: Sequence[bool], context: _Context
) -> tuple[Flops, list[bool]]:
    """What a jaxpr executes, and which of its inputs that needs.

    Args:
      jaxpr: the program.
      values: of its constants and inputs; None where a value is unknown.
      wanted: which of its results are needed.
      context: of this program.
    """
    known = known_in(jaxpr, values)
    results = zip(jaxpr.outvars, wanted, strict=True)
    needed = {v for v, want in results if want and isinstance(v, Var)}
    total = Flops()
    for equation in reversed(jaxpr.eqns):
        results = [v in needed for v in equation.outvars]
        if not any(results) and not equation.effects:
            continue
        operands = [value_of(v, known) for v in equation.invars]
        flops, used = _equation(equation, operands, results, context)
        total = _plus(total, flops)
        pairs = zip(equation.invars, used, strict=True)
        needed.update(v for v, use in pairs if use and isinstance(v, Var))
    return total, [v in needed for v in jaxpr.invars]


def _equation(
    equation: JaxprEqn, values: list[Any], wanted: list[bool], context: _Context
) -> tuple[Flops, list[bool]]:
    name = equation.primitive.name
    scope = str(equation.source_info.name_stack)
    context = context._replace(again=context.again or "rematted_computation" in scope)
    if name in _LOOPS:
        return _LOOPS[name](equation, values, wanted, context)
    inner, constants = called(equation)
    if inner is not None:
        return _walk(inner, constants + values, wanted, context)
    everything = [True] * len(equation.invars)
    if name in PRODUCTS:
        total, recomputed = PRODUCTS[name](equation)
        return Flops(total, total if context.again else recomputed), everything
    if name in UNKNOWN:
        return Flops(uncounted=(f"{name} at {_line(equation)}",)), everything
    return Flops(elementwise=elementwise(equation)), everything


def _line(equation: JaxprEqn) -> str:
    return source_info_util.summarize(equation.source_info)


def _scan(
    equation: JaxprEqn, values: list[Any], wanted: list[bool], context: _Context
) -> tuple[Flops, list[bool]]:
    p = equation.params
    constants, carried = p["num_consts"], p["num_carry"]
    body, end = p["jaxpr"], p["num_consts"] + p["num_carry"]
    inside = [*body.consts, *values[:constants], *[None] * (len(values) - constants)]
    carry, stacked = list(wanted[:carried]), list(wanted[carried:])
    while True:  # what one turn needs of the carry, the turn before it has to make
        flops, used = _walk(body.jaxpr, inside, carry + stacked, context)
        more = [a or b for a, b in zip(carry, used[constants:end], strict=True)]
        if more == carry:
            return _scaled(flops, p["length"]), used
        carry = more


def _while(
    equation: JaxprEqn, values: list[Any], wanted: list[bool], context: _Context
) -> tuple[Flops, list[bool]]:
    del wanted  # what is carried decides when the loop ends
    p = equation.params
    first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    start = values[second:]
    everything = [True] * len(start)
    unknown = [None] * len(start)
    condition, body = p["cond_jaxpr"], p["body_jaxpr"]
    test, _ = _walk(
        condition.jaxpr, [*condition.consts, *values[:first], *unknown], [True], context
    )
    turn, _ = _walk(
        body.jaxpr, [*body.consts, *values[first:second], *unknown], everything, context
    )
    number = turns(condition, body, values[:first], start)
    if number is None:
        number = context.trips
        turn = turn._replace(unknown_loops=(*turn.unknown_loops, f"while at {_line(equation)}"))
    total = _plus(_scaled(turn, number), _scaled(test, number + 1))
    return total, [True] * len(equation.invars)


def _cond(
    equation: JaxprEqn, values: list[Any], wanted: list[bool], context: _Context
) -> tuple[Flops, list[bool]]:
    branches = [
        _walk(branch.jaxpr, [*branch.consts, *values[1:]], wanted, context)
        for branch in equation.params["branches"]
    ]
    used = [any(uses) for uses in zip(*(used for _, used in branches), strict=True)]
    largest = max((flops for flops, _ in branches), key=lambda f: (f.total, f.elementwise))
    return largest, [True, *used]


def _shard_map(
    equation: JaxprEqn, values: list[Any], wanted: list[bool], context: _Context
) -> tuple[Flops, list[bool]]:
    p = equation.params
    axes = p["newly_manual_axes"] if "newly_manual_axes" in p else p["manual_axes"]
    devices = math.prod(p["mesh"].shape[axis] for axis in axes)
    flops, used = _walk(p["jaxpr"], on_device(values, p["jaxpr"]), wanted, context)
    return _scaled(flops, devices), used


def _pallas_call(
    equation: JaxprEqn, values: list[Any], wanted: list[bool], context: _Context
) -> tuple[Flops, list[bool]]:
    """A kernel runs once for each point of its grid.

    Splash attention skips the blocks that its mask leaves empty, and repeats in its backward pass
    products of the forward pass: the scores, and in a kernel for the queries' gradient alone also
    the gradient of the weights.
    """
    del wanted
    p = equation.params
    mapping, kernel = p["grid_mapping"], p["jaxpr"]
    everything = [True] * len(equation.invars)
    name = str(p.get("name") or getattr(p.get("name_and_src_info"), "name", "") or "kernel")
    if not all(isinstance(n, int) for n in mapping.grid):
        return Flops(uncounted=(f"{name} at {_line(equation)}",)), everything
    once, _ = _walk(kernel, [None] * len(kernel.invars), [True] * len(kernel.outvars), context)
    flops = _scaled(once, math.prod(mapping.grid))
    if name.startswith("splash_"):
        if mapping.num_index_operands >= 2:
            blocks = values[1]
            if blocks is None:
                flops = flops._replace(uncounted=(*flops.uncounted, f"empty blocks of {name}"))
            else:
                flops = _scaled(flops, float(np.mean(np.asarray(blocks) > 0)))
        if not context.again:
            share = (
                2 / 3
                if "_dq" in name
                else 1 / number_of_products(kernel)
                if "_dkv" in name
                else 0.0
            )
            flops = flops._replace(recomputed=share * flops.total)
    return flops, everything


_LOOPS: dict[str, Callable] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
    "pallas_call": _pallas_call,
}
