"""What one device of a compiled program moves, computes and sends, read from the program's text.

XLA's own analyses count the body of a loop once. Here every loop counts as often as it runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from genjax.planning import hlo_groups, hlo_loops, hlo_products
from genjax.planning import hlo_text as text_of
from genjax.planning.hlo_collectives import (
    MEGASCALE,
    Collective,
    between_slices,
    exchanged,
    goes_on,
    in_fusion,
    kind_of,
)
from genjax.planning.hlo_memory import Traffic
from genjax.planning.hlo_text import Body, Instruction, Module, bytes_of


class Program(NamedTuple):
    """What one device does in one run of a program.

    Attributes:
      hbm_bytes: that it reads and writes in its memory: operands and results of instructions and
        fusions, not what stays inside a fusion; of what is sliced or updated in place, the part
        that is touched.
      flops: of products and convolutions, without those with zeros outside of an image. Kernels of
        other libraries whose products the text does not tell are in `uncounted`.
      collectives: where devices exchange arrays.
      unknown_loops: the loops whose number of turns the text does not tell.
      uncounted: the targets of custom calls that may contain products.
    """

    hbm_bytes: float
    flops: float
    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()


def read(text: str, slice_of: Callable[[int], int] | None = None, trips: int = 1) -> Program:
    """Reads an optimised, partitioned program.

    Args:
      text: what `compiled.as_text()` gives, of TPUs, GPUs or CPUs.
      slice_of: a device's number in the program's mesh, from 0 on -> its slice; of GPUs its host.
        None: there is one.
      trips: how often a loop is taken to run that does not say so.

    Raises:
      ValueError: the text is no such program, or has parts of an unknown form.
    """
    module = text_of.parse(text)
    if MEGASCALE in text:
        slice_of = None
    return _Reader(module, slice_of, trips).control(module.entry)


class _Reader:
    """The costs of a module's computations, each worked out once."""

    def __init__(self, module: Module, slice_of: Callable[[int], int] | None, trips: int):
        self.module, self.slice_of, self.trips = module, slice_of, trips
        self.loops = hlo_loops.loops(module)
        self.control = functools.cache(self._control)
        self.fused = functools.cache(self._fused)
        self.traffic = Traffic(module)
        self.members = functools.cache(self._members)

    # ---- Computations

    def _control(self, name: str) -> Program:
        """What a computation does whose instructions run one by one."""
        body = self.module.computations[name]
        return _sum(self._instruction(instruction, body) for instruction in body.values())

    def _fused(self, name: str) -> Program:
        """What is computed and sent inside of a fusion; nothing of it is memory's traffic."""
        body = self.module.computations[name]
        parts = []
        for instruction in body.values():
            if instruction.opcode in ("fusion", "call", "async-start"):
                parts += [self.fused(c) for c in text_of.called(instruction, "calls", "to_apply")]
            elif (kind := kind_of(instruction)) is not None:
                if not goes_on(instruction, body):
                    parts.append(self._sent(instruction, body, in_fusion(kind, instruction, body)))
            else:
                parts.append(_computed(instruction, body))
        return _sum(parts)

    def _instruction(self, i: Instruction, body: Body) -> Program:
        if i.opcode == "while":
            return self._loop(i)
        if i.opcode == "conditional":
            names = ("branch_computations", "true_computation", "false_computation")
            branches = [self.control(name) for name in text_of.called(i, *names)]
            return max(branches, key=lambda program: (program.flops, program.hbm_bytes))
        if i.opcode in ("call", "async-start"):
            return _sum(self.control(name) for name in text_of.called(i, "to_apply", "calls"))
        if i.opcode.endswith(("-done", "-update")):
            return _NOTHING
        moved = Program(self.traffic.of(i, body), 0, ())
        if i.opcode == "fusion":
            inside = _sum(self.fused(name) for name in text_of.called(i, "calls"))
            named = (
                c if c.scope else c._replace(scope=text_of.scope(i)) for c in inside.collectives
            )
            return _sum([moved, inside._replace(collectives=tuple(named))])
        if i.opcode == "send" and MEGASCALE in i.rest:
            return _sum([moved, _one(between_slices(i, body))])
        if (kind := kind_of(i)) is not None:
            return _sum([moved, self._sent(i, body, kind)])
        return _sum([moved, _computed(i, body)])

    def _loop(self, i: Instruction) -> Program:
        turn = _sum(self.control(name) for name in text_of.called(i, "body", "condition"))
        turns = hlo_loops.turns(i, self.module, self.loops)
        if turns is not None:
            return _times(turn, turns)
        unknown = f"{i.name} {text_of.scope(i)}".strip()
        return _times(turn, self.trips)._replace(unknown_loops=(*turn.unknown_loops, unknown))

    # ---- Collectives

    def _sent(self, i: Instruction, body: Body, kind: str) -> Program:
        operand = sum(bytes_of(body[name].shape) for name in i.operands)
        size, islands = self.members(hlo_groups.replicas(i.rest))
        return _one(exchanged(kind, i, operand, size, islands))

    def _members(self, replicas: str) -> tuple[int, int]:
        """How many devices a group has, and how many slices it spans."""
        groups = hlo_groups.groups(replicas, self.module.devices)
        if self.slice_of is None or not groups.size:
            return groups.shape[1], 1
        slices = np.vectorize(self.slice_of, otypes=[int])(groups)
        return groups.shape[1], max(len(set(group)) for group in slices.tolist())


def _computed(i: Instruction, body: Body) -> Program:
    flops = hlo_products.flops(i, body)
    if flops is None:
        return Program(0, 0, (), uncounted=(text_of.target(i),))
    return Program(0, flops, ()) if flops else _NOTHING


def _one(collective: Collective | None) -> Program:
    return _NOTHING if collective is None else Program(0, 0, (collective,))


def _sum(parts: Iterable[Program]) -> Program:
    parts = [part for part in parts if part != _NOTHING]
    return Program(
        sum(part.hbm_bytes for part in parts),
        sum(part.flops for part in parts),
        tuple(collective for part in parts for collective in part.collectives),
        tuple(dict.fromkeys(name for part in parts for name in part.unknown_loops)),
        tuple(dict.fromkeys(name for part in parts for name in part.uncounted)),
    )


def _times(program: Program, turns: int) -> Program:
    return program._replace(
        hbm_bytes=turns * program.hbm_bytes,
        flops=turns * program.flops,
        collectives=tuple(
            c._replace(count=turns * c.count, sent_bytes=turns * c.sent_bytes)
            for c in program.collectives
            if turns
        ),
    )


_NOTHING = Program(0, 0, ())
