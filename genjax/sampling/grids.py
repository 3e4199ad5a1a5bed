"""Grids of noise levels at which a sampler calls the network, the noisiest first, in float64.

A grid is `Levels` with N + 1 rows: the levels at which N steps begin, and the level at which the
last step ends: the data (alpha 1, sigma 0) or the path's first level.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from genjax.checks import ConfigError, is_number, one_of, require
from genjax.sampling.paths import CLIP, Levels, Path, levels

NAMES = ("uniform", "trailing", "leading", "linspace", "lambda", "karras")
ENDS = ("data", "first")
MOST_STEPS = 2**14


def times(
    path: Path,
    steps: int,
    spacing: str = "uniform",
    *,
    rho: float = 7.0,
    shift: float = 1.0,
    given: tuple[float, ...] = (),
) -> Float[np.ndarray, "N"]:
    """The times of a sampler's steps, the noisiest first.

    "uniform" is evenly spaced in t, and its last step ends at the path's first time; the last step
    of "linspace" begins there. In discrete time "trailing", "leading" and "linspace" choose whole
    timesteps (Lin et al. 2024, table 2; "linspace": DPM-Solver's authors), and "uniform" is
    "trailing". "lambda" is evenly spaced in lambda (Lu et al. 2022), "karras" in
    (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5); both go from the path's last level to its
    first.

    Args:
      path: from data to noise.
      steps: N.
      spacing: of NAMES.
      rho: of "karras".
      shift: factor of sigma / alpha for grids in continuous time; above 1, more steps are at high
        noise (Esser et al. 2024, eq. 23).
      given: N times to use instead, such as a table of Sabour et al. (2024).

    Raises:
      ConfigError: steps below 1 or above the number of timesteps; an unknown spacing; given times
        that do not decrease, or lie outside the path.
    """
    if not isinstance(given, tuple | list) or not all(map(is_number, given)):
        raise ConfigError(f'times={given!r}: expected numbers, such as "(900, 600, 300)".')
    if given:
        given_times = np.asarray(given, np.float64)
        inside = np.all((given_times >= path.first) & (given_times <= path.last))
        if given_times.ndim != 1 or not inside or np.any(np.diff(given_times) >= 0):
            raise ConfigError(
                f"times={tuple(given)}: expected decreasing times of the path, from "
                f"{path.last:g} to {path.first:g}."
            )
        return given_times
    one_of("spacing", spacing, NAMES)
    require(1 <= steps <= MOST_STEPS, "steps", steps, f"1 to {MOST_STEPS}")
    require(shift > 0, "shift", shift, "more than 0")
    if path.steps and steps > path.steps:
        raise ConfigError(
            f"steps={steps}: a sampler takes between 1 and {path.steps} steps here, the number of "
            "timesteps that the model was trained with."
        )
    T, N = path.steps, steps
    if spacing in ("trailing", "leading") or (T and spacing in ("uniform", "linspace")):
        if not T:
            raise ConfigError(
                f"spacing={spacing!r} takes whole timesteps, but a path in continuous time has "
                "none. Use uniform, linspace, lambda or karras."
            )
        require(shift == 1, "shift", shift, f"1 with spacing={spacing!r}, or lambda or karras")
        if spacing == "leading":
            return (np.arange(N) * (T // N))[::-1].astype(np.float64)
        if spacing == "linspace":
            return np.linspace(0, T - 1, N + 1).round()[:0:-1]
        return np.round(np.arange(N, 0, -1) * T / N) - 1
    if spacing in ("uniform", "linspace"):
        grid_times = np.linspace(path.last, path.first, N + (spacing == "uniform"))[:N]
        return grid_times if shift == 1 else _moved(path, grid_times, shift)
    high, low = float(path.lam(path.last)), float(path.lam(path.first))
    if not np.isfinite(high):  # pure noise: begin at the first level with some data
        high = max(-CLIP, float(path.lam(path.last - 1)) if T else -np.inf)
    if spacing == "lambda":
        lam = np.linspace(high, low, N)
    else:
        ends = np.exp(-np.asarray([high, low]) / rho)
        lam = -rho * np.log(np.linspace(*ends, N))
    grid_times = np.clip(path.time(lam), path.first, path.last)
    grid_times[-1] = path.first
    grid_times[0] = path.last
    return grid_times if shift == 1 else _moved(path, grid_times, shift)


def _moved(path: Path, t: Float[np.ndarray, "N"], shift: float) -> Float[np.ndarray, "N"]:
    """Shifts times by their flow time sigma / (alpha + sigma), as Esser et al. 2024 do.

    The noisiest time stays, and no two times become equal.
    """
    noisiest = path.last - 1 if path.steps and np.isneginf(path.lam(path.last)) else path.last
    top, share = (1 / (1 + np.exp(path.lam(at))) for at in (noisiest, t))
    u = np.minimum(share / top, 1)
    moved = top * shift * u / (1 + (shift - 1) * u)
    with np.errstate(divide="ignore"):
        shifted = path.time(np.log1p(-moved) - np.log(moved))
    shifted[0] = t[0]
    return np.clip(shifted, path.first, path.last)


def grid(path: Path, t: Float[np.ndarray, "N"], end: str = "data") -> Levels:
    """The levels at decreasing times, and the level at which the last step ends.

    Args:
      path: from data to noise.
      t: decreasing times. In continuous time, a last one that equals `end` is left out.
      end: "data" or "first", the path's first level, as in the code of DDIM's authors.

    Raises:
      ConfigError: an unknown end, or two times of the same noise.
    """
    one_of("end", end, ENDS)
    t = np.asarray(t, np.float64)
    if end == "first" and len(t) > 1 and t[-1] == path.first and not path.steps:
        t = t[:-1]
    at = levels(path, t)
    last = Levels(path.time_input(np.asarray(path.first)), np.float64(1), np.float64(0))
    if end == "first":
        last = levels(path, path.first)
    all_levels = Levels(*(np.append(a, b) for a, b in zip(at, last, strict=True)))
    with np.errstate(divide="ignore"):
        ratio = all_levels.sigma / all_levels.alpha
    decreases = np.diff(ratio) < 0
    if end == "first" and path.steps:
        decreases = decreases[:-1]  # the last step may begin and end at timestep 0
    if not decreases.all():
        i = int(np.argmin(decreases))
        near = ", ".join(f"{time:g}" for time in t[i : i + 2])
        raise ConfigError(
            f"the sampler's {len(t)} times have the same noise twice (at {near}): use fewer steps "
            "or another spacing."
        )
    return all_levels
