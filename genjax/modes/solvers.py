"""--mode=solvers and --mode=sweep_guidance: what samples are worth over solvers, calls, guidance.

Every solver and number of network calls runs in one compiled program, those that draw noise in a
second one; all scales and intervals of guidance in one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from genjax.config import ConfigError, one_of, read_options, require
from genjax.methods.diffusion import Options, guidable
from genjax.modes.measured import Sample, begin, finish, opened
from genjax.sampling import solvers
from genjax.sampling.draw import planned
from genjax.sampling.table import Table
from genjax.training.sweep import Sweep

SAMPLERS = ("ddim", "heun", "dpm++_2m", "dpm++_3m", "unipc", "deis", "dpm++_2m_sde")
CALLS = (5, 8, 10, 15, 20, 30, 50)
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
FINE = ("unipc_3", 200)  # solver and steps of the trajectory that others are compared with
MEASURED = ("error", "seconds")


# ---- what the flags say --------------------------------------------------------------------------


def numbers(flag: str, text: str, kind: type, default: Sequence[Any], least: float) -> list[Any]:
    """The numbers of a flag, separated by commas, each once.

    Raises:
      ConfigError: one is no such number, or below `least`.
    """
    try:
        found = [kind(part) for part in text.split(",")] if text else list(default)
    except ValueError:
        found = []
    what = "whole numbers" if kind is int else "numbers"
    ok = bool(found) and all(value >= least for value in found)
    require(ok, flag, text, f"{what} of at least {least:g}, separated by commas")
    return list(dict.fromkeys(found))


def intervals_of(text: str) -> list[tuple[float, float]]:
    """`0:inf,0.3:5` as pairs of sigma / alpha; the whole path if nothing is given.

    Raises:
      ConfigError: it is written otherwise.
    """
    try:
        found = [tuple(map(float, part.split(":"))) for part in (text or "0:inf").split(",")]
    except ValueError:
        found = [()]
    ok = all(len(pair) == 2 and 0 <= pair[0] < pair[1] for pair in found)
    require(ok, "--intervals", text, "LOW:HIGH of sigma / alpha, with commas, such as 0:inf,0.3:5")
    return list(dict.fromkeys(found))


def samplers_of(text: str) -> list[str]:
    """The solvers that --samplers names.

    Raises:
      ConfigError: there is no such solver.
    """
    names = list(dict.fromkeys(text.split(","))) if text else list(SAMPLERS)
    for name in names:
        one_of("--samplers", name, tuple(solvers.SOLVERS))
    return names


# ---- choices -------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """One solver with one number of calls.

    Attributes:
      solver: its name.
      spacing: of its steps.
      steps: how many.
      table: of the solver.
    """

    solver: str
    spacing: str
    steps: int
    table: Table

    @property
    def row(self) -> dict[str, Any]:
        """What a table says of it."""
        calls = int(self.table.calls)
        return {"solver": self.solver, "spacing": self.spacing, "steps": self.steps, "calls": calls}


def choices(
    names: Sequence[str],
    spacings: Sequence[str],
    calls: Sequence[int],
    table: Callable[[str, str, int], Table],
    most: int = 0,
) -> list[Choice]:
    """Each solver with each spacing and the most steps for each number of calls, each once.

    Args:
      names: of solvers.
      spacings: of the steps.
      calls: of the network, at most.
      table: (solver, spacing, steps) -> table.
      most: steps that there can be; 0 for any number.

    Raises:
      ConfigError: a solver's fewest steps take more calls, or a spacing is none of the path's.
    """
    found = {}
    for name in names:
        for spacing in spacings:
            for count in sorted(calls):
                steps, made = solvers.steps_for(name, count, partial(table, name, spacing), most)
                found[name, spacing, steps] = Choice(name, spacing, steps, made)
    return list(found.values())


# ---- a run ---------------------------------------------------------------------------------------


def rms(samples: np.ndarray, fine: np.ndarray) -> float:
    """The root of the mean squared difference."""
    return float(np.sqrt(np.mean(np.square(samples.astype(np.float64) - fine))))


def solvers_of_run(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Measures solvers over numbers of network calls: the judges' metrics and the error.

    The error is the distance of a deterministic solver's samples to those of the same keys by a
    fine trajectory.

    Raises:
      ConfigError: see `opened`, `choices` and the method's `plan`.
    """
    names = samplers_of(flags.samplers)
    calls = numbers("--calls", flags.calls, int, CALLS, 1)
    swept = {"sampler": "samplers", "steps": "calls", "spacing": "spacings", "times": "spacings"}
    begun = begin(config, folder, flags, swept)
    section = read_options(config.diffusion, "diffusion", Options)
    T, plan, options = section.num_timesteps, begun.method.plan, begun.options
    spacings = flags.spacings.split(",") if flags.spacings else [section.spacing]

    def table(name: str, spacing: str, steps: int) -> Table:
        return plan(**options, sampler=name, spacing=spacing, steps=steps)["table"]

    found = choices(names, spacings, calls, table, T)
    solver, steps = FINE[0], min(FINE[1], T or FINE[1])
    fine = {name: v for name, v in options.items() if name not in ("eta", "order")}
    fine |= {"sampler": solver, "steps": steps, "spacing": section.spacing if T else "lambda"}
    asked = [options | {"sampler": c.solver, "spacing": c.spacing, "steps": c.steps} for c in found]
    own = opened(begun, folder, flags)
    draw_fine, *draws = own.draws([fine, *asked], flags)
    images = (own.method.output or own.run.spec.generated).kind == "image"
    units = "levels of 255" if images else "the data's units"
    reference, scale = None, 1.0

    def measured(choice: Choice, draw: Sample) -> dict[str, Any]:
        nonlocal reference, scale
        if reference is None:
            reference = draw_fine()
            scale = 255.0 if images and reference.dtype != np.uint8 else 1.0
        start = time.perf_counter()
        samples = draw()
        row = choice.row | {"seconds": time.perf_counter() - start}
        if not choice.table.stochastic:
            row["error"] = scale * rms(samples, reference)
        return row | own.judged(samples)

    distances = own.metrics()
    titles = {"error": f"error, RMS in {units}"} | {name: name for name in distances}
    blank = Sweep(
        "Solvers",
        f"{own.num} samples of step {int(own.state.step)} for each. The error is the root of the "
        f"mean squared difference to {steps} steps of {solver} from the same noise; solvers that "
        "draw noise have none. The first time of a program includes its compilation.",
        ("solver", "spacing") if len(spacings) > 1 else ("solver",),
        ("calls", "network calls"),
        titles,
        ("solver", "spacing", "steps", "calls", *MEASURED, *own.metrics("precision", "recall")),
    )
    rows = [partial(measured, c, draw) for c, draw in zip(found, draws, strict=True)]
    return finish(own, folder, blank, "solvers", rows)


def sweep_guidance(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Measures scales and intervals of guidance by the judges' metrics.

    Raises:
      ConfigError: see `opened` and the method's `plan`; a model that cannot be guided.
    """
    scales = numbers("--scales", flags.scales, float, SCALES, 0)
    intervals = intervals_of(flags.intervals)
    swept = {"guidance": "scales", "guidance_interval": "intervals"}
    begun = begin(config, folder, flags, swept)
    pairs = [(scale, interval) for interval in intervals for scale in sorted(scales)]
    asked = [
        begun.options | {"guidance": scale, "guidance_interval": interval}
        for scale, interval in pairs
    ]
    section = read_options(config.diffusion, "diffusion", Options)
    if not (guidable(section) or flags.guide_ema or flags.guide_checkpoint):
        raise ConfigError(
            f"--mode={flags.mode}: the run cannot be guided by its labels or other conditions. "
            "Train one with diffusion.class_conditional=True or diffusion.conditions, and "
            "diffusion.label_dropout > 0, or guide this one by worse weights, with --guide_ema or "
            "--guide_checkpoint."
        )
    for one in asked:
        planned(begun.method, one)  # complain before the work
    own = opened(begun, folder, flags)
    draws = own.draws(asked, flags)

    def measured(scale: float, interval: tuple[float, float], draw: Sample) -> dict[str, Any]:
        low, high = (f"{end:g}" for end in interval)
        return {"interval": f"{low}:{high}", "scale": scale} | own.judged(draw())

    names = own.metrics("precision", "recall", "accuracy")
    blank = Sweep(
        "Guidance",
        f"{own.num} samples of step {int(own.state.step)} for each scale of guidance, used where "
        "sigma / alpha is in the interval that a curve is named after.",
        ("interval",),
        ("scale", "scale"),
        {name: name for name in names},
        ("interval", "scale", *names),
    )
    rows = [partial(measured, *pair, draw) for pair, draw in zip(pairs, draws, strict=True)]
    return finish(own, folder, blank, "guidance", rows)
