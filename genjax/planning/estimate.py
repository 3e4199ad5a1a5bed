"""One plan: what a compiled program takes of memory, time and network, by its figures alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from genjax.checks import ConfigError
from genjax.planning import flops, hlo, least, programs
from genjax.planning.flops import Flops
from genjax.planning.hlo import Collective
from genjax.planning.least import Needed
from genjax.planning.programs import Compiled
from genjax.planning.roofline import Roofline, roofline
from genjax.planning.roofs import Roof
from genjax.training.assemble import Assembly


class Memory(NamedTuple):
    """Bytes of one device.

    Attributes:
      params: of all networks.
      optimizer: of its moments.
      averages: of the networks.
      other: of the state.
      batch: of a step.
      temporaries: activations, gradients and what is gathered.
      peak: at once.
      capacity: of the device; 0 if unknown.
    """

    params: int
    optimizer: int
    averages: int
    other: int
    batch: int
    temporaries: int
    peak: int
    capacity: int

    @property
    def fits(self) -> bool:
        """Whether the device holds it."""
        return not self.capacity or self.peak <= self.capacity


class Estimate(NamedTuple):
    """What a step, or a batch of samples, costs.

    Attributes:
      what: "train" or "sample".
      mesh: axis -> devices.
      examples: of one step, or samples of one batch.
      tokens: of these; 0 of what has none.
      memory: of one device.
      flops: of all devices together.
      hbm_bytes: that one device reads and writes.
      collectives: of one device.
      least: what the layout needs of them.
      roofline: of one device; None of a program that was too large to be compiled.
      compile_seconds: that the compiler took.
      executable: the compiled program; None if it was too large.
    """

    what: str
    mesh: dict[str, int]
    examples: int
    tokens: int
    memory: Memory
    flops: Flops
    hbm_bytes: float
    collectives: Sequence[Collective]
    least: Sequence[Needed]
    roofline: Roofline | None
    compile_seconds: float
    executable: jax.stages.Compiled | None = None

    @property
    def fits(self) -> bool:
        """Whether the program was compiled and the devices hold it."""
        return self.roofline is not None and self.memory.fits

    @property
    def collective_bytes(self) -> int:
        """Bytes that one device sends."""
        return round(sum(c.sent_bytes for c in self.collectives))

    @property
    def least_bytes(self) -> int:
        """Bytes that one device has to send at least."""
        return sum(needed.bytes for needed in self.least)


def estimate(
    run: Assembly,
    roof: Roof,
    what: str = "train",
    num: int = 64,
    options: dict[str, Any] | None = None,
) -> Estimate:
    """Compiles a run's step or sampler for the devices of its mesh, and reads what it costs.

    Args:
      run: put together for these devices.
      roof: what one of them can do.
      what: "train" or "sample".
      num: samples of one batch.
      options: of the sampler.

    Raises:
      ConfigError: an option of drawing that the method does not have, or a compiled program of a
        form that is not known.
    """
    training = what == "train"
    traced = programs.step(run) if training else programs.sampler(run, num, options or {})
    counted = flops.count(traced.program.jaxpr)
    made = programs.compiled(traced)
    devices = run.mesh.devices.size
    program = None
    if made.text:
        islands = [roof.island(device) for device in run.mesh.devices.flat]
        try:
            program = read(made.text, islands.__getitem__, counted.total / devices)
        except ValueError as error:
            raise ConfigError(
                f"--mode=plan: the compiled program has a form that is not known here ({error}); "
                f"it needs {made.peak / 2**30:.2f} GiB a device and {counted.total:.3g} FLOPs. "
                "Use the jax version of launch/constraints.txt for Python 3.11."
            ) from error
    examples = run.examples_per_step if training else num
    return Estimate(
        what,
        dict(run.mesh.shape),
        examples,
        examples * tokens_of(run),
        _memory(run, made, roof, training),
        counted,
        program.hbm_bytes if program else 0.0,
        program.collectives if program else (),
        least.of_step(run.state.params, run.method.phases, run.mesh, run.config.precision)
        if training
        else (),
        bound(counted, devices, program, roof) if program else None,
        made.seconds,
        made.executable,
    )


def read(text: str, island: Callable[[int], int], each: float) -> hlo.Program:
    """A compiled program, whose loops of unknown length run until it has `each` FLOPs.

    A sampler's loop may end with the last text, which the compiled program does not tell and the
    traced one does.
    """
    once = hlo.read(text, slice_of=island)
    if not once.unknown_loops:
        return once
    turn = hlo.read(text, slice_of=island, trips=2).flops - once.flops
    trips = round(1 + (each - once.flops) / turn) if turn > 0 else 1
    return hlo.read(text, slice_of=island, trips=max(trips, 1))


def tokens_of(run: Assembly) -> int:
    """The targets of one example of text; 0 of other data."""
    field = run.spec.generated
    return field.shape[0] - 1 if field.kind == "text" and field.shape else 0


def bound(counted: Flops, devices: int, program: hlo.Program, roof: Roof) -> Roofline:
    """The roofline of one device.

    What a fused kernel computes is in no HLO, and what the partition repeats on several devices is
    in no jaxpr: the larger of the two counts.
    """
    seconds = {False: 0.0, True: 0.0}
    sent = {False: 0.0, True: 0.0}
    for c in program.collectives:
        rate = roof.across(c.group, c.islands) if c.crosses else roof.inside(c.group)
        sent[c.crosses] += c.sent_bytes
        seconds[c.crosses] += c.sent_bytes / rate
    return roofline(
        flops=max(program.flops, counted.total / devices),
        model_flops=counted.model / devices,
        peak_flops=roof.flops_per_second,
        hbm_bytes=program.hbm_bytes,
        hbm_rate=roof.hbm_bytes_per_second,
        ici_bytes=sent[False],
        ici_rate=sent[False] / (seconds[False] or 1.0),
        dcn_bytes=sent[True],
        dcn_rate=sent[True] / (seconds[True] or 1.0),
    )


def _memory(run: Assembly, made: Compiled, roof: Roof, training: bool) -> Memory:
    state, of = run.state, programs.shard_bytes
    parts = {"params": of(state.params), "optimizer": 0, "averages": 0, "other": of(state.mutable)}
    batch = 0
    if training:
        parts |= {"optimizer": of(state.opt_state), "averages": of(state.ema)}
        batch = of(run.batch)
    known = sum(parts.values()) + batch
    # Of what lies in a TPU's own buffers the compiler counts nothing as temporary.
    temporaries = max(made.temporaries, made.peak - known, 0)
    capacity = made.available or roof.hbm_bytes
    return Memory(**parts, batch=batch, temporaries=temporaries, peak=made.peak, capacity=capacity)
