"""Races between programs: each side is a process of its own, and the sides take turns.

So whatever else the machine does meets all of them. A side prints its result as one line of JSON
with the keys `rate`, in whatever is counted a second, and `cpu_ms`, milliseconds of CPU time for
one of these.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
# The diffusion of torch_unet.py and torch_dit.py, as keys of a config.
DISCRETE = {
    "diffusion.path": "cosine",
    "diffusion.num_timesteps": 1000,
    "diffusion.prediction": "v",
    "diffusion.times": "uniform",
    "diffusion.sampler": "ddim",
    "diffusion.steps": 50,
}
# What makes each side use one thread of the CPU alone: XLA's variable, and OpenMP's.
ONE_THREAD = {"NPROC": "1", "OMP_NUM_THREADS": "1"}


def several(kind):
    """The type of a flag with commas between its values, each read by `kind`."""

    def values(text):
        return [kind(one) for one in text.split(",")]

    return values


def among(known):
    """The `kind` of a value that is one of those."""

    def one(text):
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r}: expected one of {', '.join(known)}")
        return text

    return one


def measured(step, seconds, each=1, finish=lambda: None):
    """The result of a side: calls `step` for so many seconds, after a fifth of them to warm up.

    What a call begins it has to finish, or `finish` does; it counts as `each` in the rate.
    """

    def go(seconds):
        start, cpu, calls = time.perf_counter(), time.process_time(), 0
        while not calls or time.perf_counter() - start < seconds:
            step()
            calls += 1
        finish()
        passed, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"rate": each * calls / passed, "cpu_ms": 1000 * cpu / (each * calls)}

    step()
    go(seconds / 5)
    return go(seconds)


def started(python, script, *arguments, environment=()):
    """The JSON that a process prints last; leaves if it fails."""
    command = [python, str(FOLDER / script), *map(str, arguments)]
    variables = os.environ | dict(environment)
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def either_way(sides):
    """Each side with all threads, and with one."""
    return sides | {
        f"{name}, one thread": partial(side, environment=ONE_THREAD) for name, side in sides.items()
    }


def fastest(title, sides):
    """The name of the fastest of several variants of one side, each run once."""
    rates = {name: side()["rate"] for name, side in sides.items()}
    print(f"  {title}: " + ", ".join(f"{n} {rate:.2f}" for n, rate in rates.items()), flush=True)
    return max(rates, key=rates.get)


def race(title, unit, sides, rounds):
    """Runs all sides so many times in turn, and prints rates and ratios.

    Args:
      title: of the last line.
      unit: of the rates, as in "steps/s".
      sides: name -> function that runs the side and returns its result. The best of those whose
        names begin with "genjax" is set against the best of the others.
      rounds: how often.

    Returns:
      name -> the rates, one a round.
    """
    found = {name: [] for name in sides}
    for i in range(rounds):
        for name, side in sides.items():
            found[name].append(side())
        rates = ", ".join(f"{results[-1]['rate']:.2f}" for results in found.values())
        print(f"  round {i + 1}: {rates} {unit}", flush=True)
    rates = {n: np.array([r["rate"] for r in results]) for n, results in found.items()}
    for name, rate in rates.items():
        cpu = np.median([r["cpu_ms"] for r in found[name]])
        print(
            f"  {name:32} {np.median(rate):8.2f} {unit} ({rate.min():.2f} to {rate.max():.2f}), "
            f"{1000 / np.median(rate):.2f} ms, {cpu:.2f} ms of CPU"
        )
    compare(title, rates)
    return rates


def compare(title, rates):
    """Prints the ratio of genjax's best to the others' best, round by round; `rates` as `race`."""
    mine, theirs = (
        max(
            (rate for name, rate in rates.items() if name.startswith("genjax") == own),
            key=np.median,
        )
        for own in (True, False)
    )
    ratios = mine / theirs
    print(
        f"{title}: genjax / the others' best = {np.median(ratios):.2f}, median of {len(ratios)} "
        f"rounds ({ratios.min():.2f} to {ratios.max():.2f})",
        flush=True,
    )
