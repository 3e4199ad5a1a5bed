"""Samplers of diffusion and flow models: functions from a grid of noise levels to a `Table`.

In the comments s = sigma / alpha and lambda = -log s; a prime marks the level at which a step ends.
For a constant pair the step from x to alpha' x_0 + sigma' epsilon is exact on every path. This step
is DDIM; it equals Euler's method in t on a straight path and in s on an exploding one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from genjax.checks import ConfigError, one_of, require
from genjax.sampling.paths import Levels, Path, levels, levels_at
from genjax.sampling.table import ANCHOR, NOISE, POINT, SECOND, Rows, Table

VARIANCES = ("fixed_small", "fixed_large", "learned")
MOST_FALL = 50  # the largest factor by which PNDM's first step may lower sigma / alpha


def _row(grid: Levels, i: int) -> Levels:
    return Levels(*(float(a[i]) for a in grid))


def _ratio(at: Levels) -> float:
    return at.sigma / at.alpha if at.alpha else math.inf


def _lam(at: Levels) -> float:
    return (
        math.log(at.alpha) - math.log(at.sigma)
        if at.alpha and at.sigma
        else (-math.inf if at.sigma else math.inf)
    )


def _middle(path: Path, lam: float) -> Levels:
    return Levels(*(float(a) for a in levels_at(path, lam)))


def _small_variance(at: Levels, to: Levels) -> float:
    """Variance of q(x' | x, x_0) (Ho et al. 2020, eq. 7): sigma'^2 (1 - s'^2 / s^2) on any path."""
    if not (to.alpha and to.sigma):
        return 0.0
    return max(to.sigma**2 * (1 - (to.sigma * at.alpha / (to.alpha * at.sigma)) ** 2), 0.0)


def _large_variance(at: Levels, to: Levels) -> float:
    """Variance that the step from x' to x adds: beta of Ho et al. 2020."""
    return at.sigma**2 - (at.alpha / to.alpha) ** 2 * to.sigma**2


# ---- one call a step -----------------------------------------------------------------------------


def ddim(path: Path, grid: Levels, *, eta: float = 0.0) -> Table:
    """DDIM (Song et al. 2021, eq. 12 and 16).

    eta 0 is deterministic and of first order, equivalent to Euler's method; 1 is the ancestral
    sampler with the small variance (Ho et al. 2020, algorithm 2), k-diffusion's Euler-ancestral.

    Raises:
      ConfigError: eta is outside 0 ... 1.
    """
    require(0 <= eta <= 1, "eta", eta, "between 0 (no noise) and 1 (ancestral)")
    rows = Rows(path, grid, 0)
    for i in range(len(grid.alpha) - 1):
        at, to = _row(grid, i), _row(grid, i + 1)
        variance = eta**2 * _small_variance(at, to)
        direction = math.sqrt(max(to.sigma**2 - variance, 0.0))
        step = to.alpha * rows.x0() + direction * rows.epsilon()
        rows.add(at, step + math.sqrt(variance) * rows.unit(NOISE), ends=_ratio(to))
    return rows.table()


def inverse(path: Path, grid: Levels) -> Table:
    """DDIM from data to noise (Song et al. 2021, section 4.3): the steps of a grid in reverse.

    DDIM maps the resulting noise back to the data, with an error that falls with the number of
    steps. It starts at the grid's last level: give `solve` the data as `start`.

    Raises:
      ConfigError: the grid ends at data without noise, where a network cannot be called.
    """
    if not grid.sigma[-1]:
        raise ConfigError(
            "the grid ends at data without noise, a level that no network is trained at: going "
            "from data to noise needs a grid with end='first', the path's first level."
        )
    return ddim(path, Levels(*(a[::-1] for a in grid)))


def ddpm(path: Path, grid: Levels, *, variance: str = "fixed_small") -> Table:
    """DDPM's sampler (Ho et al. 2020, algorithm 2) with its choices of variance (section 3.2).

    "learned" interpolates between both by the network's fraction (Nichol & Dhariwal 2021, eq. 15).

    Raises:
      ConfigError: an unknown variance.
    """
    one_of("variance", variance, VARIANCES)
    rows = Rows(path, grid, 0)
    for i in range(len(grid.alpha) - 1):
        at, to = _row(grid, i), _row(grid, i + 1)
        small, large = _small_variance(at, to), _large_variance(at, to)
        mean = to.alpha * rows.x0() + math.sqrt(to.sigma**2 - small) * rows.epsilon()
        if not small:
            rows.add(at, mean, ends=_ratio(to))
            continue
        deviation = math.sqrt(large if variance == "fixed_large" else small)
        spread = 0.5 * math.log(large / small) if variance == "learned" else 0.0
        rows.add(at, mean + deviation * rows.unit(NOISE), ends=_ratio(to), spread=spread)
    return rows.table()


def dpm_multistep(
    path: Path, grid: Levels, *, order: int = 2, eta: float = 0.0, lower_order_final: bool = True
) -> Table:
    """DPM-Solver++ 2M and 3M (Lu et al. 2022b, algorithm 2 and appendix D.2), and their SDE forms.

    eta 1 solves the reverse SDE (appendix C), 0 the ODE. The first steps are of lower order. So is
    the step to the data, and, with `lower_order_final` and fewer than 15 steps, those before it. 3M
    uses half of the second derivative's term, as its authors' code and all others do: it is of
    second order, with a smaller error than 2M.

    Raises:
      ConfigError: an order other than 1, 2 or 3; eta is outside 0 ... 1.
    """
    require(order in (1, 2, 3), "order", order, "1, 2 or 3")
    require(0 <= eta <= 1, "eta", eta, "between 0 (ODE) and 1 (SDE)")
    rows, count = Rows(path, grid, order - 1), len(grid.alpha) - 1
    lam = [_lam(_row(grid, i)) for i in range(count + 1)]
    for i in range(count):
        at, to = _row(grid, i), _row(grid, i + 1)
        m = [rows.x0(k) for k in range(order)]
        # A first-order step: from pure noise, where there is no slope, to the data, or between
        # equal levels, as on a grid that begins at timestep 0 and ends at the first level.
        if not (at.alpha and to.sigma) or lam[i] == lam[i + 1]:
            rows.add(at, to.alpha * m[0] + to.sigma * rows.epsilon(), ends=_ratio(to))
            continue
        usable = min(order, i + 1 if np.isfinite(lam[0]) else i)
        if lower_order_final and count < 15:
            usable = min(usable, count - i)
        h = lam[i + 1] - lam[i]
        rate = 1.0 + eta  # the SDE replaces part of the noise by new noise
        phi1 = -math.expm1(-rate * h)
        step = to.sigma / at.sigma * math.exp(-eta * h) * rows.unit(POINT)
        step = step + to.alpha * phi1 * m[0]
        if usable >= 2:
            r0 = (lam[i] - lam[i - 1]) / h
            first = (m[0] - m[1]) / r0
        if usable == 2:
            step = step + 0.5 * to.alpha * phi1 * first
        if usable == 3:
            r1 = (lam[i - 1] - lam[i - 2]) / h
            change = first - (m[1] - m[2]) / r1
            phi2 = 1 - phi1 / (rate * h)
            phi3 = 0.5 - phi2 / (rate * h)
            step = step + to.alpha * phi2 * (first + r0 / (r0 + r1) * change)
            step = step + to.alpha * phi3 * change / (r0 + r1)  # half of Taylor's term; see above
        deviation = to.sigma * math.sqrt(-math.expm1(-2 * eta * h))
        rows.add(at, step + deviation * rows.unit(NOISE), ends=_ratio(to))
    return rows.table()


def unipc(path: Path, grid: Levels, *, order: int = 2, kind: str = "bh2") -> Table:
    """UniPC (Zhao et al. 2023, algorithms 1 and 2): a multistep predictor and corrector.

    The corrector takes no additional calls. UniPC predicts x_0. The first steps are of lower order;
    the order falls again at the end, to 1 at the last step. `kind` is B(h): "bh1" is h, "bh2" is
    e^h - 1.

    Raises:
      ConfigError: an order other than 1, 2 or 3; an unknown kind.
    """
    require(order in (1, 2, 3), "order", order, "1, 2 or 3")
    one_of("kind", kind, ("bh1", "bh2"))
    rows, count = Rows(path, grid, order), len(grid.alpha) - 1
    lam = [_lam(_row(grid, i)) for i in range(count + 1)]

    def solved(i: int, used: int, shift: int, last: bool) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients of x and of pairs for step i; `last` includes the pair at the step's end."""
        at, to = _row(grid, i), _row(grid, i + 1)
        h = lam[i + 1] - lam[i]
        phi1 = math.expm1(-h)
        b_h = -h if kind == "bh1" else phi1
        ratios = [(lam[i - k] - lam[i]) / h for k in range(1, used)] + [1.0]
        powers = np.stack([np.asarray(ratios) ** k for k in range(used)])
        phi, b = phi1 / -h - 1, []
        for k in range(1, used + 1):
            b.append(phi * math.factorial(k) / b_h)
            phi = phi / -h - 1 / math.factorial(k + 1)
        m0 = rows.x0(shift)
        slopes = [(rows.x0(shift + k) - m0) / r for k, r in enumerate(ratios[:-1], 1)]
        if last:
            slopes.append(rows.x0(shift - 1) - m0)
            weights = np.linalg.solve(powers, b) if used > 1 else np.array([0.5])
        elif used == 2:
            weights = np.array([0.5])
        else:
            weights = np.linalg.solve(powers[:-1, :-1], b[:-1])
        pairs = -to.alpha * phi1 * m0
        for weight, slope in zip(weights, slopes, strict=True):
            pairs = pairs - to.alpha * b_h * weight * slope
        return to.sigma / at.sigma, pairs

    before = 0
    for i in range(count):
        at, to = _row(grid, i), _row(grid, i + 1)
        here = rows.unit(POINT)
        if before and at.alpha and np.isfinite(lam[i - 1]):
            factor, pairs = solved(i - 1, before, 1, last=True)
            here = factor * rows.unit(ANCHOR) + pairs
        if not (at.alpha and to.sigma):
            step = to.alpha * rows.x0() + to.sigma * rows.epsilon()
            used = 1 if at.alpha else 0
        elif lam[i] == lam[i + 1]:
            step, used = here, 0
        else:
            used = min(order, i + 1 if np.isfinite(lam[0]) else i, count - i)
            factor, pairs = solved(i, used, 0, last=False)
            step = factor * here + pairs
        rows.add(at, step, here, ends=_ratio(to))
        before = used
    return rows.table()


def deis(path: Path, grid: Levels, *, order: int = 2) -> Table:
    """DEIS in the variable log(s) (Zhang & Chen 2023, algorithm 1, "rho-AB").

    epsilon is the polynomial in log(s) through the last `order` calls; quadrature integrates it
    over s to float64's precision.

    Raises:
      ConfigError: an order other than 1, 2 or 3.
    """
    require(order in (1, 2, 3), "order", order, "1, 2 or 3")
    rows, count = Rows(path, grid, order - 1), len(grid.alpha) - 1
    nodes, weights = np.polynomial.legendre.leggauss(24)
    for i in range(count):
        at, to = _row(grid, i), _row(grid, i + 1)
        usable = min(order, i + 1 if grid.alpha[0] else i)
        if count < 15:
            usable = min(usable, count - i)
        if not (at.alpha and to.sigma) or usable < 2:
            rows.add(at, to.alpha * rows.x0() + to.sigma * rows.epsilon(), ends=_ratio(to))
            continue
        u = [-_lam(_row(grid, i - k)) for k in range(usable)]
        end = -_lam(to)
        points = 0.5 * (end - u[0]) * nodes + 0.5 * (end + u[0])
        slope = np.zeros(rows.width)
        for k in range(usable):
            lagrange = np.prod(
                [(points - u[j]) / (u[k] - u[j]) for j in range(usable) if j != k], axis=0
            )
            integral = 0.5 * (end - u[0]) * np.sum(weights * lagrange * np.exp(points))
            slope = slope + integral * rows.epsilon(k)
        step = to.alpha / at.alpha * rows.unit(POINT) + to.alpha * slope
        rows.add(at, step, ends=_ratio(to))
    return rows.table()


def _transfer(rows: Rows, x: np.ndarray, epsilon: np.ndarray, at: Levels, to: Levels):
    """DDIM's step from x with the given epsilon (Liu et al. 2022, eq. 11)."""
    factor = to.alpha / at.alpha
    return factor * x + (to.sigma - factor * at.sigma) * epsilon


_ADAMS = ([1.0], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


def pndm(path: Path, grid: Levels, *, warmup: str = "runge_kutta") -> Table:
    """PNDM (Liu et al. 2022, algorithm 2): Adams-Bashforth weights of four steps' epsilon.

    It begins with three Runge-Kutta steps of four calls each. With warmup "multistep" it begins
    with a first step of two calls and then lower orders (as Stable Diffusion does).

    Raises:
      ConfigError: an unknown warm-up; fewer than 4 steps; a first step from pure noise, or from
        nearly pure noise.
    """
    one_of("warmup", warmup, ("runge_kutta", "multistep"))
    count = len(grid.alpha) - 1
    require(count >= 4, "steps", count, "at least 4 with solver pndm")
    if not grid.alpha[0]:
        raise ConfigError(
            "solver pndm: the path ends in pure noise, from which pndm has no step. Use ddim."
        )
    fall = _ratio(_row(grid, 0)) / _ratio(_row(grid, 1))
    if fall > MOST_FALL:  # the error of a mean epsilon over such a step is multiplied by the fall
        raise ConfigError(
            f"solver pndm: its first step, from nearly pure noise, divides sigma / alpha by "
            f"{fall:.0f}; above {MOST_FALL} it diverges. Use spacing='leading', or ddim."
        )
    rows, begin = Rows(path, grid, 3), 0
    x, current = rows.unit(ANCHOR), rows.epsilon()

    def both(i: int) -> tuple[Levels, Levels]:
        return _row(grid, i), _row(grid, i + 1)

    if warmup == "multistep":
        at, to = both(0)
        here = rows.unit(POINT)
        rows.add(at, _transfer(rows, here, current, at, to), here, ends=_ratio(to))
        mean = 0.5 * (current + rows.epsilon(1))
        rows.add(to, _transfer(rows, x, mean, at, to), keep=False, ends=_ratio(to))
        begin = 1
    for i in range(3) if warmup == "runge_kutta" else ():
        at, to = both(i)
        middle = _halfway(path, at, to)
        here, total = rows.unit(POINT), rows.unit(SECOND)
        share = partial(_transfer, rows, np.zeros(rows.width), at=at, to=to)
        first = _transfer(rows, here, current / 6, at, to)
        rows.add(at, _transfer(rows, here, current, at, middle), here, first, ends=_ratio(at))
        to_middle = _transfer(rows, x, current, at, middle)
        rows.add(middle, to_middle, x, total + share(current / 3), keep=False, ends=_ratio(at))
        to_end = _transfer(rows, x, current, at, to)
        rows.add(middle, to_end, x, total + share(current / 3), keep=False, ends=_ratio(at))
        rows.add(to, total + share(current / 6), keep=False, ends=_ratio(to))
        begin = i + 1
    for i in range(begin, count):
        at, to = both(i)
        weights = _ADAMS[min(i, 3)]
        epsilon = sum(w * rows.epsilon(k) for k, w in enumerate(weights))
        rows.add(at, _transfer(rows, rows.unit(POINT), epsilon, at, to), ends=_ratio(to))
    return rows.table()


def _halfway(path: Path, at: Levels, to: Levels) -> Levels:
    """The level halfway: in discrete time by the network's time input, else by lambda."""
    if path.steps:
        return Levels(
            *(float(a) for a in levels(path, max(0.5 * (at.time_input + to.time_input), 0.0)))
        )
    return _middle(path, 0.5 * (_lam(at) + min(_lam(to), _lam(at) + 4.0)))


# ---- two calls a step ----------------------------------------------------------------------------


def heun(
    path: Path,
    grid: Levels,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> Table:
    """Heun's method, and EDM's stochastic sampler (Karras et al. 2022, algorithms 1 and 2).

    On a straight path it averages velocities over t, on other paths epsilon over s. The step to the
    data, and on other paths one from pure noise, is Euler's.

    Args:
      path: from data to noise.
      grid: of noise levels.
      churn: S_churn, the noise added before steps, in total over all steps; 0 adds none.
      churn_min: S_min, the least s at which noise is added.
      churn_max: S_max, the largest s.
      churn_noise: S_noise, standard deviation of the added noise.

    Raises:
      ConfigError: churn below 0.
    """
    require(churn >= 0, "churn", churn, "at least 0")
    rows, count = Rows(path, grid, 1), len(grid.alpha) - 1
    most = min(churn / count, math.sqrt(2) - 1)

    def churned(i: int) -> Levels:
        """The level at which step i begins, including the added noise."""
        at = _row(grid, i)
        if not most or not at.alpha or not at.sigma or not churn_min <= _ratio(at) <= churn_max:
            return at
        return _middle(path, -math.log(_ratio(at) * (1 + most)))

    def arrived(i: int, at: Levels, x: np.ndarray) -> np.ndarray:
        """x at the end of step i, plus the noise added before the next step."""
        if i + 1 == count:
            return x
        more = churned(i + 1)
        scale = more.alpha / at.alpha if at.alpha else 1.0
        added = max(_ratio(more) ** 2 - _ratio(at) ** 2, 0.0) if at.alpha else 0.0
        return scale * x + more.alpha * math.sqrt(added) * churn_noise * rows.unit(NOISE)

    for i in range(count):
        at, to = churned(i), _row(grid, i + 1)
        here, there = rows.unit(POINT), rows.unit(ANCHOR)
        euler = to.alpha * rows.x0() + to.sigma * rows.epsilon()
        straight = path.scaling == "linear"
        if not to.sigma or not (at.alpha or straight):
            rows.add(at, arrived(i, to, euler), ends=_ratio(to))
            continue
        rows.add(at, euler, here, ends=_ratio(at))
        if straight:  # velocity is epsilon - x_0; also from pure noise, where s is infinite
            slope = 0.5 * sum(rows.epsilon(k) - rows.x0(k) for k in range(2))
            step = there + (to.sigma - at.sigma) * slope
        else:
            slope = 0.5 * sum(rows.epsilon(k) for k in range(2))
            step = to.alpha / at.alpha * there + to.alpha * (_ratio(to) - _ratio(at)) * slope
        rows.add(to, arrived(i, to, step), ends=_ratio(to))
    table = rows.table()
    first = churned(0)
    return table._replace(start=np.float64(first.sigma if path.scaling != "preserving" else 1.0))


def dpm_singlestep(
    path: Path, grid: Levels, *, eta: float = 0.0, lower_order_final: bool = True
) -> Table:
    """DPM-Solver++ 2S (Lu et al. 2022b, algorithm 1): each step makes two calls over two levels.

    The middle call is at a level of the grid. The last of an odd number of grid steps is of first
    order; with `lower_order_final`, so are the last two of an even number. With eta 1 the steps are
    ancestral: to below a level's noise, then new noise is added (k-diffusion's dpmpp_2s_ancestral).

    Raises:
      ConfigError: eta is outside 0 ... 1.
    """
    require(0 <= eta <= 1, "eta", eta, "between 0 (ODE) and 1 (ancestral)")
    rows, count = Rows(path, grid, 1), len(grid.alpha) - 1
    single = 1 if lower_order_final or not grid.sigma[-1] else 0  # the least first-order last steps
    i = 0
    while i < count:
        at, to = _row(grid, i), _row(grid, i + 1)
        if count - i < 2 + single or not at.alpha:
            variance = eta**2 * _small_variance(at, to) if at.alpha else 0.0
            direction = math.sqrt(max(to.sigma**2 - variance, 0.0))
            step = to.alpha * rows.x0() + direction * rows.epsilon()
            rows.add(at, step + math.sqrt(variance) * rows.unit(NOISE), ends=_ratio(to))
            i += 1
            continue
        end = _row(grid, i + 2)
        variance = eta**2 * _small_variance(at, end)
        down = end._replace(sigma=math.sqrt(max(end.sigma**2 - variance, 0.0)))
        first = to.alpha * rows.x0() + to.sigma * rows.epsilon()
        rows.add(at, first, rows.unit(POINT), ends=_ratio(at))
        h = _lam(down) - _lam(at)
        r = (_lam(to) - _lam(at)) / h
        phi1 = -math.expm1(-h)
        slope = (rows.x0() - rows.x0(1)) / r
        step = down.sigma / at.sigma * rows.unit(ANCHOR)
        step = step + down.alpha * phi1 * (rows.x0(1) + 0.5 * slope)
        rows.add(to, step + math.sqrt(variance) * rows.unit(NOISE), ends=_ratio(end))
        i += 2
    return rows.table()


class Solver(NamedTuple):
    """A solver: the function that makes its table, its options, and its least number of steps."""

    table: Callable[..., Table]
    options: tuple[str, ...] = ()
    least: int = 1


SOLVERS: dict[str, Solver] = {
    "euler": Solver(ddim),
    "ddim": Solver(ddim, ("eta",)),
    "euler_ancestral": Solver(partial(ddim, eta=1.0)),
    "ddpm": Solver(ddpm, ("variance",)),
    "heun": Solver(heun),
    "edm": Solver(
        partial(heun, churn=40.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003),
        ("churn",),
    ),
    "dpm++_1s": Solver(partial(dpm_multistep, order=1), ("eta",)),
    "dpm++_2s": Solver(dpm_singlestep, ("eta",)),
    "dpm++_2m": Solver(partial(dpm_multistep, order=2)),
    "dpm++_3m": Solver(partial(dpm_multistep, order=3)),
    "dpm++_2m_sde": Solver(partial(dpm_multistep, order=2, eta=1.0), ("eta",)),
    "dpm++_3m_sde": Solver(partial(dpm_multistep, order=3, eta=1.0), ("eta",)),
    "unipc": Solver(unipc, ("order",)),
    "unipc_3": Solver(partial(unipc, order=3)),
    "deis": Solver(deis, ("order",)),
    "deis_3": Solver(partial(deis, order=3)),
    "pndm": Solver(pndm, ("warmup",), least=4),
}


def steps_for(
    name: str, calls: int, table: Callable[[int], Table], most: int = 0
) -> tuple[int, Table]:
    """The largest number of steps that takes at most `calls` calls of the network, and its table.

    Args:
      name: of the solver.
      calls: the most calls.
      table: steps -> the solver's table.
      most: the most steps; 0 for no limit.

    Raises:
      ConfigError: the solver's least number of steps takes more calls.
    """
    least = SOLVERS[name].least
    steps = max(min(calls, most or calls), least)
    sampler = table(steps)
    while sampler.calls > calls:
        if steps == least:
            raise ConfigError(
                f"calls={calls}: solver {name} takes {sampler.calls} in its fewest steps, {least}. "
                "Allow that many calls, or use another solver."
            )
        # Except in a warm-up, a step takes at most two calls.
        steps = max(least, steps - max(1, (sampler.calls - calls) // 2))
        sampler = table(steps)
    return steps, sampler
