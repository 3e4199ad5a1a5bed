"""What a compiled program (HLO) reads and writes in the main memory of a device."""

from __future__ import annotations

import functools

from genjax.planning import hlo_text as text_of
from genjax.planning.hlo_collectives import BEGIN, END, goes_on
from genjax.planning.hlo_text import VIEWS, Body, Instruction, Module, bytes_of, hbm_bytes_of

# Instructions that move nothing: their results are their operands, or they stand for others.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "domain"),
    *("add-dependency", "opt-barrier", "partition-id", "replica-id", "get-dimension-size"),
}
_FREE_TARGETS = {
    *("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "Sharding"),
    *("GatherScatterIndicesBitpacked", "annotate_device_placement"),
}
_SLICES = {"slice", "dynamic-slice", "gather"}


class Traffic:
    """The bytes that the instructions of a module move; a fusion is looked into once."""

    def __init__(self, module: Module):
        """Looks into nothing yet."""
        self.module = module
        self.touched = functools.cache(self._touched)

    def _hbm(self, shape: str) -> float:
        return hbm_bytes_of(shape, self.module.tpu)

    def of(self, i: Instruction, body: Body) -> float:
        """The bytes that an instruction reads and writes in memory."""
        opcode, result = i.opcode.removesuffix("-start"), i.shape
        operands = [body[name].shape for name in i.operands]
        if opcode == "copy" and i.opcode != opcode:
            result = text_of.elements(i.shape)[0]
        elif opcode != "all-reduce" and i.opcode != opcode:
            result = text_of.elements(i.shape)[1]  # behind the operands
        if opcode in _FREE:
            return 0.0
        if opcode == "fusion":
            (name,) = text_of.called(i, "calls")
            reads, writes = self.touched(name)
            parts = zip((*operands, *text_of.elements(result)), (*reads, *writes), strict=True)
            return sum(min(self._hbm(shape), touched) for shape, touched in parts)
        if opcode == "custom-call":
            target = text_of.target(i)
            if target in _FREE_TARGETS:
                return 0.0
            outputs = text_of.elements(result)
            if len(outputs) > 1 and target.startswith("__cu"):
                outputs = outputs[:-1]  # the last one is room for the library to work in
            return sum(map(self._hbm, (*operands, *outputs)))
        if opcode == "send":
            return self._hbm(operands[0])
        if opcode == "recv":
            return self._hbm(text_of.elements(i.shape)[0])
        if opcode in ("slice", "dynamic-slice"):
            return self._hbm_like(result, operands[0]) + self._hbm(result)
        if opcode == "gather":
            return self._hbm(operands[1]) + 2 * self._hbm(result)
        if opcode == "dynamic-update-slice":
            return self._hbm(operands[1]) + self._hbm_like(operands[1], result)
        if opcode == "scatter":
            arrays = (len(operands) - 1) // 2  # then indices, and as many arrays of updates
            indices, *updates = map(self._hbm, operands[arrays:])
            return indices + 3 * sum(updates)  # they are read, added to what is there, written
        return sum(map(self._hbm, operands)) + self._hbm(result)

    def _hbm_like(self, part: str, whole: str) -> float:
        """The bytes of a part of an array in memory; none if that is not in the main one."""
        return hbm_bytes_of(part, False) if self._hbm(whole) else 0.0

    def _touched(self, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The bytes that a fusion reads of each of its operands, and writes of each result.

        They are counted as if all operands and results were in the main memory.
        """
        body = self.module.computations[name]
        users: dict[str, list[Instruction]] = {}
        for instruction in body.values():
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        parameters = sorted(
            (i for i in body.values() if i.opcode == "parameter"), key=lambda i: int(i.literal)
        )
        reads = tuple(self._read_of(p, body, users) for p in parameters)
        return reads, self._writes(text_of.root(body), body)

    def _read_of(self, i: Instruction, body: Body, users: dict[str, list[Instruction]]) -> float:
        """The bytes that the users of a value inside of a fusion read of it."""
        whole = hbm_bytes_of(i.shape, False)
        passed_on = i.opcode == "parameter"
        total = 0.0 if passed_on or not i.root else whole
        for user in users.get(i.name, []):
            first = user.operands[0] == i.name
            if user.opcode in VIEWS:
                part = self._read_of(user, body, users)
                part *= bytes_of(i.shape) / max(bytes_of(user.shape), 1)
            elif user.opcode in _SLICES and first:
                part = hbm_bytes_of(user.shape, False)
            elif (user.opcode == "dynamic-update-slice" and first) or (
                user.opcode == "tuple" and passed_on
            ):
                part = 0.0  # it is changed in place, or left as it is
            elif goes_on(user, body) or text_of.target(user) == END:
                part = 0.0
            elif user.opcode == "fusion":
                (callee,) = text_of.called(user, "calls")
                reads = zip(self.touched(callee)[0], user.operands, strict=True)
                part = sum(read for read, name in reads if name == i.name)
            else:
                part = whole
            total += part
        return min(total, whole)

    def _writes(self, root: Instruction, body: Body) -> tuple[float, ...]:
        """The bytes that a fusion with this root writes of each of its results."""
        if root.opcode == "tuple":
            return tuple(self._written(body[name], body) for name in root.operands)
        if root.opcode == "fusion":
            (callee,) = text_of.called(root, "calls")
            return self.touched(callee)[1]
        if text_of.target(root) == BEGIN:  # its operand as it is, and what is received
            received = text_of.elements(root.shape)[1:]
            return (0.0, *(hbm_bytes_of(part, False) for part in received))
        if root.shape.startswith("("):  # of an operation with several results
            return tuple(hbm_bytes_of(part, False) for part in text_of.elements(root.shape))
        return (self._written(root, body),)

    def _written(self, i: Instruction, body: Body) -> float:
        """The bytes that are written of one result of a fusion."""
        while i.opcode in VIEWS:
            operand = body[i.operands[0]]
            if operand.opcode not in VIEWS and operand.opcode != "dynamic-update-slice":
                break
            i = operand
        if i.opcode == "parameter" or goes_on(i, body) or text_of.target(i) == END:
            return 0.0
        if i.opcode == "dynamic-update-slice":
            return hbm_bytes_of(body[i.operands[1]].shape, False)
        return sum(self._writes(i, body)) if i.opcode == "fusion" else hbm_bytes_of(i.shape, False)
