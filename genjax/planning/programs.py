"""Compiles a step or a sampler for devices that may be elsewhere, and says what memory it takes."""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from genjax.planning import gpus
from genjax.sampling.draw import drawing
from genjax.training.assemble import Assembly

Tree = Any
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Traced(NamedTuple):
    """A program that is not compiled yet.

    Attributes:
      program: what `jax.jit(...).trace` gives.
      mesh: the devices that it is for.
    """

    program: jax.stages.Traced
    mesh: jax.sharding.Mesh


class Compiled(NamedTuple):
    """A program that was compiled, or that the compiler found too large.

    Attributes:
      executable: what runs on the devices, if they are here; None if it was too large.
      text: the optimised HLO of one device; "" if it was too large.
      peak: bytes that one device needs at once.
      temporaries: of these, what is neither state nor batch; -1 if unknown.
      seconds: that compiling took.
      available: bytes of the device that the compiler gives out; 0 if it has not said.
    """

    executable: jax.stages.Compiled | None
    text: str
    peak: int
    temporaries: int
    seconds: float
    available: int = 0


def step(run: Assembly) -> Traced:
    """The training step of a run."""
    with jax.set_mesh(run.mesh):
        return Traced(run.step.trace(run.state, run.batch), run.mesh)


def sampler(run: Assembly, num: int, options: dict[str, Any]) -> Traced:
    """What draws a batch of `num` samples at most, without conditions.

    Raises:
      ConfigError: an option that the method does not have.
    """
    draw = drawing(run.method, run.mesh, num, options)
    state = run.state
    with jax.set_mesh(run.mesh):
        program = draw.program.trace(
            state.params, state.mutable, state.key, draw.index(0), {}, draw.arrays
        )
    return Traced(program, run.mesh)


def compiled(traced: Traced) -> Compiled:
    """Compiles a program; one that is too large for the devices is a result, and no error."""
    start = time.perf_counter()
    with jax.set_mesh(traced.mesh):
        with gpus.cudnn():
            lowered = traced.program.lower()
        try:
            program = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = too_large(str(error))
            if needed is None:
                raise
            return Compiled(None, "", needed[0], -1, time.perf_counter() - start, needed[1])
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    return Compiled(program, program.as_text(), peak(memory), memory.temp_size_in_bytes, seconds)


def peak(memory: Any) -> int:
    """The most bytes in use at once, of what `memory_analysis` gives."""
    known = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return max(known, getattr(memory, "peak_memory_in_bytes", 0))


def too_large(message: str) -> tuple[int, int] | None:
    """The bytes that a compiler says are needed, and available; None of another error."""
    forms = (
        r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?)\w* hbm",
        r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
    )
    for form in forms:
        if match := re.search(form, message):
            needed, available = match.groups()[:2], match.groups()[2:]
            sizes = (int(float(n) * UNITS.get(unit, 1)) for n, unit in (needed, available))
            return tuple(sizes)
    return None


def shard_bytes(tree: Tree) -> int:
    """Bytes of one device's part of a tree of shapes with shardings."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
