"""Where a sampler calls the network: noise levels from the path's last to its first, in float64.

A grid is `Levels` with N + 1 rows: the levels of N steps, and the one that the last step ends at,
which is the data (alpha 1, sigma 0) or the path's first level.
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

    "uniform" is even in t, with the last step to the path's first time; "linspace" has its last
    step begin there. In discrete time "trailing", "leading" and "linspace" are ways to take whole
    timesteps (Lin et al. 2024, table 2, and for "linspace" DPM-Solver's authors), and "uniform" is
    "trailing". "lambda" is even in lambda (Lu et al. 2022), "karras" in (sigma / alpha)^(1 / rho)
    (Karras et al. 2022, eq. 5); both go from the path's last level to its first.

    Args:
      path: from data to noise.
      steps: N.
      spacing: of NAMES.
      rho: of "karras".
      shift: factor of sigma / alpha, more of the steps at much noise if above 1 (Esser et al. 2024,
        eq. 23); of grids in continuous time.
      given: N times by hand in place of all that, such as a table of Sabour et al. (2024).

    Raises:
      ConfigError: more steps than timesteps, none, or no such spacing; times that do not fall, or
        lie outside the path.
    """
    if not isinstance(given, tuple | list) or not all(map(is_number, given)):
        raise ConfigError(f'times={given!r}: expected numbers, such as "(900, 600, 300)".')
    if given:
        by_hand = np.asarray(given, np.float64)
        inside = np.all((by_hand >= path.first) & (by_hand <= path.last))
        if by_hand.ndim != 1 or not inside or np.any(np.diff(by_hand) >= 0):
            raise ConfigError(
                f"times={tuple(given)}: expected falling times from {path.last:g} to "
                f"{path.first:g}, those of the path."
            )
        return by_hand
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
                f"spacing={spacing!r} takes whole timesteps, of which a path in continuous time "
                "has none. Use uniform, linspace, lambda or karras."
            )
        require(shift == 1, "shift", shift, f"1 with spacing={spacing!r}, or lambda or karras")
        if spacing == "leading":
            return (np.arange(N) * (T // N))[::-1].astype(np.float64)
        if spacing == "linspace":
            return np.linspace(0, T - 1, N + 1).round()[:0:-1]
        return np.round(np.arange(N, 0, -1) * T / N) - 1
    if spacing in ("uniform", "linspace"):
        found = np.linspace(path.last, path.first, N + (spacing == "uniform"))[:N]
        return found if shift == 1 else _moved(path, found, shift)
    high, low = float(path.lam(path.last)), float(path.lam(path.first))
    if not np.isfinite(high):  # pure noise, and steps from where the data begin to show
        high = max(-CLIP, float(path.lam(path.last - 1)) if T else -np.inf)
    if spacing == "lambda":
        lam = np.linspace(high, low, N)
    else:
        ends = np.exp(-np.asarray([high, low]) / rho)
        lam = -rho * np.log(np.linspace(*ends, N))
    found = np.clip(path.time(lam), path.first, path.last)
    found[-1] = path.first
    found[0] = path.last
    return found if shift == 1 else _moved(path, found, shift)


def _moved(path: Path, t: Float[np.ndarray, "N"], shift: float) -> Float[np.ndarray, "N"]:
    """The times with sigma / (alpha + sigma), the time of a flow, moved as Esser et al. 2024 do.

    The noisiest stays where it is, and no two come to lie together.
    """
    noisiest = path.last - 1 if path.steps and np.isneginf(path.lam(path.last)) else path.last
    top, share = (1 / (1 + np.exp(path.lam(at))) for at in (noisiest, t))
    u = np.minimum(share / top, 1)
    moved = top * shift * u / (1 + (shift - 1) * u)
    with np.errstate(divide="ignore"):
        found = path.time(np.log1p(-moved) - np.log(moved))
    found[0] = t[0]
    return np.clip(found, path.first, path.last)


def grid(path: Path, t: Float[np.ndarray, "N"], end: str = "data") -> Levels:
    """The levels at falling times, and of what the last step ends at.

    Args:
      path: from data to noise.
      t: falling times, of which one may be the path's first: it is left out if the end is that.
      end: "data" or "first", the path's first level, as DDIM's authors had it.

    Raises:
      ConfigError: no such end, or two times of the same noise.
    """
    one_of("end", end, ENDS)
    t = np.asarray(t, np.float64)
    if end == "first" and len(t) > 1 and t[-1] == path.first and not path.steps:
        t = t[:-1]
    at = levels(path, t)
    last = Levels(path.told(np.asarray(path.first)), np.float64(1), np.float64(0))
    if end == "first":
        last = levels(path, path.first)
    whole = Levels(*(np.append(a, b) for a, b in zip(at, last, strict=True)))
    with np.errstate(divide="ignore"):
        ratio = whole.sigma / whole.alpha
    falls = np.diff(ratio) < 0
    if end == "first" and path.steps:
        falls = falls[:-1]  # the last step of a grid that begins at 0 stays where it is
    if not falls.all():
        raise ConfigError(
            f"the sampler's times {tuple(np.round(t, 6))} have the same noise twice: take fewer "
            "steps, or another spacing."
        )
    return whole
