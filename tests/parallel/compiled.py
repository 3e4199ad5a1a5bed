"""What the compiler made of a train step: its collectives and its arrays, read from the HLO."""

import math
import re
from collections import Counter
from typing import NamedTuple

import jax

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
ARRAY = re.compile(r"(pred|s8|u8|bf16|f16|s32|u32|f32)\[([0-9,]*)\]")


class Moved(NamedTuple):
    """Collectives of one step by kind: how many run, and the bytes of their results."""

    count: Counter
    size: Counter


def bytes_of(shapes: str) -> int:
    return sum(
        BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in ARRAY.findall(shapes)
    )


def moved(text: str) -> Moved:
    """Loops count as often as they run."""
    bodies, callers, name = {}, {}, ""
    for line in text.splitlines():
        if begins := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = begins[1]
        bodies.setdefault(name, []).append(line)
        trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        for called in re.findall(r"(?:body|to_apply|calls|_computation)=%?([\w.-]+)", line):
            callers[called] = (name, int(trips[1]) if trips else 1)
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            callers |= {called: (name, 1) for called in re.findall(r"%?([\w.-]+)", branches)}

    def runs(of: str) -> int:
        caller, trips = callers.get(of, ("", 1))
        return trips * runs(caller) if caller else 1

    count, size = Counter(), Counter()
    for computation, lines in bodies.items():
        for line in lines:
            if found := re.search(rf"= (.*?) ({KINDS})(?:-start)?\(", line):
                count[found[2]] += runs(computation)
                size[found[2]] += runs(computation) * bytes_of(found[1])
    return Moved(count, size)


def shapes(text: str) -> set[tuple[int, ...]]:
    """The shapes of all arrays of floating-point numbers on a device."""
    return {
        tuple(int(n) for n in dims.split(",") if n)
        for dtype, dims in ARRAY.findall(text)
        if dtype in ("f32", "bf16")
    }


def step_text(run) -> str:
    """The optimised program of one train step of an assembly."""
    with jax.set_mesh(run.mesh):
        return run.step.lower(run.state, run.batch).compile().as_text()
