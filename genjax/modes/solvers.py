"""--mode=solvers and --mode=sweep_guidance: metrics of samples per solver, calls and guidance.

All deterministic solvers and numbers of network calls share one compiled program; those that draw
noise share a second one. All scales and intervals of guidance share one.
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
from genjax.methods.diffusion_options import Options, guidable
from genjax.modes.measured import Sample, begin, finish, opened
from genjax.sampling import solvers
from genjax.sampling.draw import planned
from genjax.sampling.table import Table
from genjax.training.sweep import Sweep

SAMPLERS = ("ddim", "heun", "dpm++_2m", "dpm++_3m", "unipc", "deis", "dpm++_2m_sde")
CALLS = (5, 8, 10, 15, 20, 30, 50)
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
FINE = ("unipc_3", 200)  # solver and steps of the reference trajectory
MEASURED = ("error", "seconds")


# ---- flags ---------------------------------------------------------------------------------------


def numbers(flag: str, text: str, kind: type, default: Sequence[Any], least: float) -> list[Any]:
    """The distinct numbers of a flag, separated by commas.

    Raises:
      ConfigError: one is not a number of this `kind`, or is below `least`.
    """
    try:
        values = [kind(part) for part in text.split(",")] if text else list(default)
    except ValueError:
        values = []
    expected = "whole numbers" if kind is int else "numbers"
    ok = bool(values) and all(value >= least for value in values)
    require(ok, flag, text, f"{expected} of at least {least:g}, separated by commas")
    return list(dict.fromkeys(values))


def intervals_of(text: str) -> list[tuple[float, float]]:
    """Parses `0:inf,0.3:5` into pairs of sigma / alpha; the default is the whole path.

    Raises:
      ConfigError: the text has another form.
    """
    try:
        pairs = [tuple(map(float, part.split(":"))) for part in (text or "0:inf").split(",")]
    except ValueError:
        pairs = [()]
    ok = all(len(pair) == 2 and 0 <= pair[0] < pair[1] for pair in pairs)
    require(
        ok, "--intervals", text, "LOW:HIGH of sigma / alpha, separated by commas, as in 0:inf,0.3:5"
    )
    return list(dict.fromkeys(pairs))


def samplers_of(text: str) -> list[str]:
    """The names of the solvers in --samplers.

    Raises:
      ConfigError: there is no such solver.
    """
    names = list(dict.fromkeys(text.split(","))) if text else list(SAMPLERS)
    for name in names:
        one_of("--samplers", name, tuple(solvers.SOLVERS))
    return names


# ---- choices -------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """One solver with one number of network calls.

    Attributes:
      solver: its name.
      spacing: the spacing of its steps.
      steps: the number of steps.
      table: the solver's table.
    """

    solver: str
    spacing: str
    steps: int
    table: Table

    @property
    def row(self) -> dict[str, Any]:
        """Its columns of the table of results."""
        calls = int(self.table.calls)
        return {"solver": self.solver, "spacing": self.spacing, "steps": self.steps, "calls": calls}


def choices(
    names: Sequence[str],
    spacings: Sequence[str],
    calls: Sequence[int],
    table: Callable[[str, str, int], Table],
    most: int = 0,
) -> list[Choice]:
    """Combines each solver, spacing and number of calls; takes as many steps as the calls allow.

    Args:
      names: names of the solvers.
      spacings: spacings of the steps.
      calls: largest numbers of network calls.
      table: (solver, spacing, steps) -> table.
      most: largest number of steps; 0 for no limit.

    Raises:
      ConfigError: a solver needs more calls for its fewest steps, or the path has no such spacing.
    """
    chosen = {}
    for name in names:
        for spacing in spacings:
            for count in sorted(calls):
                steps, solver_table = solvers.steps_for(
                    name, count, partial(table, name, spacing), most
                )
                chosen[name, spacing, steps] = Choice(name, spacing, steps, solver_table)
    return list(chosen.values())


# ---- a run ---------------------------------------------------------------------------------------


def rms(samples: np.ndarray, fine: np.ndarray) -> float:
    """The root mean squared difference."""
    return float(np.sqrt(np.mean(np.square(samples.astype(np.float64) - fine))))


def solvers_of_run(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Measures the judges' metrics and the error of solvers for several numbers of network calls.

    The error compares a deterministic solver's samples with those of a fine trajectory from the
    same keys.

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

    chosen = choices(names, spacings, calls, table, T)
    solver, steps = FINE[0], min(FINE[1], T or FINE[1])
    fine = {name: v for name, v in options.items() if name not in ("eta", "order")}
    fine |= {"sampler": solver, "steps": steps, "spacing": section.spacing if T else "lambda"}
    option_sets = [
        options | {"sampler": c.solver, "spacing": c.spacing, "steps": c.steps} for c in chosen
    ]
    opened_run = opened(begun, folder, flags)
    draw_fine, *draws = opened_run.draws([fine, *option_sets], flags)
    images = (opened_run.method.output or opened_run.run.spec.generated).kind == "image"
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
        return row | opened_run.judged(samples)

    distances = opened_run.metrics()
    titles = {"error": f"error, RMS in {units}"} | {name: name for name in distances}
    blank = Sweep(
        "Solvers",
        f"{opened_run.num} samples of step {int(opened_run.state.step)} for each. The error is the "
        f"RMS difference to {steps} steps of {solver} from the same noise; solvers that draw noise "
        "have none. The first time of a program includes its compilation.",
        ("solver", "spacing") if len(spacings) > 1 else ("solver",),
        ("calls", "network calls"),
        titles,
        (
            "solver",
            "spacing",
            "steps",
            "calls",
            *MEASURED,
            *opened_run.metrics("precision", "recall"),
        ),
    )
    rows = [partial(measured, c, draw) for c, draw in zip(chosen, draws, strict=True)]
    return finish(opened_run, folder, blank, "solvers", rows)


def sweep_guidance(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Measures the judges' metrics for scales and intervals of guidance.

    Raises:
      ConfigError: see `opened` and the method's `plan`; or the model cannot be guided.
    """
    scales = numbers("--scales", flags.scales, float, SCALES, 0)
    intervals = intervals_of(flags.intervals)
    swept = {"guidance": "scales", "guidance_interval": "intervals"}
    begun = begin(config, folder, flags, swept)
    pairs = [(scale, interval) for interval in intervals for scale in sorted(scales)]
    option_sets = [
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
    for option_set in option_sets:
        planned(begun.method, option_set)  # report errors before the work
    opened_run = opened(begun, folder, flags)
    draws = opened_run.draws(option_sets, flags)

    def measured(scale: float, interval: tuple[float, float], draw: Sample) -> dict[str, Any]:
        low, high = (f"{end:g}" for end in interval)
        return {"interval": f"{low}:{high}", "scale": scale} | opened_run.judged(draw())

    agreement = ("accuracy", "attribute_accuracy", "zero_shot_accuracy", "clip_score")
    names = opened_run.metrics("precision", "recall", *agreement)
    blank = Sweep(
        "Guidance",
        f"{opened_run.num} samples of step {int(opened_run.state.step)} for each guidance scale. "
        "Guidance is used where sigma / alpha is in the interval named by the curve.",
        ("interval",),
        ("scale", "scale"),
        {name: name for name in names},
        ("interval", "scale", *names),
    )
    rows = [partial(measured, *pair, draw) for pair, draw in zip(pairs, draws, strict=True)]
    return finish(opened_run, folder, blank, "guidance", rows)
