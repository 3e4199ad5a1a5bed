"""Paths between data and noise: x_t = alpha_t x_0 + sigma_t epsilon, epsilon standard normal.

A path is a function of time, lambda_t = log(alpha_t / sigma_t), and a scaling, which determines
alpha and sigma from lambda:

  preserving   alpha^2 + sigma^2 = 1   (Ho et al. 2020; Song et al. 2021b, "VP")
  linear       alpha + sigma = 1       (Liu et al. 2023, rectified flow)
  exploding    alpha = 1               (Karras et al. 2022; Song et al. 2021b, "VE")

Lambda falls as t grows. The functions compute numbers and NumPy arrays in float64, and JAX's arrays
in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.checks import ConfigError, one_of, require

MAX_BETA = 0.999  # Nichol & Dhariwal (2021): keeps the last steps from becoming singular
CLIP = 5.1  # of lambda at the noisy end of the cosine (Lu et al. 2022b, appendix D)
SCALINGS = ("preserving", "linear", "exploding")
NAMES = ("linear", "cosine", "sigmoid", "flow", "edm")


class Path(NamedTuple):
    """A path, as functions of time.

    Attributes:
      scaling: of SCALINGS.
      lam: t -> lambda.
      time: lambda -> t, in float64.
      time_input: t -> the network's time input: 1000 times the paper's.
      first: t with the least noise in training.
      last: t with the most noise.
      steps: T of a process in discrete time, whose times are 0 ... T-1; 0 in continuous time.
    """

    scaling: str
    lam: Callable[[Any], Any]
    time: Callable[[Any], Any]
    time_input: Callable[[Any], Any]
    first: float
    last: float
    steps: int = 0


class Levels(NamedTuple):
    """Noise levels, as scalars or arrays.

    Attributes:
      time_input: of the network.
      alpha: the factor of x_0.
      sigma: the factor of epsilon.
    """

    time_input: Any
    alpha: Any
    sigma: Any


def _module(x: Any) -> Any:
    return jnp if isinstance(x, jax.Array) else np


def scales(scaling: str, lam: Any) -> tuple[Any, Any]:
    """(alpha, sigma) from lambda = log(alpha / sigma), without cancellation at either end."""
    xp = _module(lam)
    if scaling == "preserving":
        return xp.exp(-0.5 * xp.logaddexp(0.0, -2 * lam)), xp.exp(-0.5 * xp.logaddexp(0.0, 2 * lam))
    if scaling == "linear":
        return xp.exp(-xp.logaddexp(0.0, -lam)), xp.exp(-xp.logaddexp(0.0, lam))
    return xp.ones_like(lam), xp.exp(-lam)


def levels(path: Path, t: Any) -> Levels:
    """The levels at each time t."""
    t = t if isinstance(t, jax.Array) else np.asarray(t, np.float64)
    return Levels(path.time_input(t), *scales(path.scaling, path.lam(t)))


def levels_at(path: Path, lam: Any) -> Levels:
    """The levels at each lambda, in float64."""
    lam = np.asarray(lam, np.float64)
    return Levels(path.time_input(path.time(lam)), *scales(path.scaling, lam))


def tabulated(path: Path, t: Array) -> Levels:
    """The levels at a batch of times; for discrete timesteps from tables computed in float64."""
    if not path.steps:
        return levels(path, t)
    tables = levels(path, np.arange(path.steps))
    return Levels(*(jnp.asarray(table, jnp.float32)[t] for table in tables))


def like(value: Any, x: Float[Array, "B ..."]) -> Any:
    """A scalar, or one number per example [B], shaped to broadcast over x."""
    return value.reshape(value.shape + (1,) * (x.ndim - 1)) if jnp.ndim(value) else value


def noised(
    at: Levels, x0: Float[Array, "B ..."], noise: Float[Array, "B ..."]
) -> Float[Array, "B ..."]:
    """x_t from x_0 and noise (Ho et al. 2020, eq. 4)."""
    return like(at.alpha, x0) * x0 + like(at.sigma, x0) * noise


# ---- in discrete time ----------------------------------------------------------------------------


def linear_betas(
    num_timesteps: int, beta_start: float | None = None, beta_end: float | None = None
) -> Float[np.ndarray, "T"]:
    """Evenly spaced betas (Ho et al. 2020, section 4: 1e-4 to 0.02 over 1000 steps).

    For another number of steps both ends are scaled by 1000 / T, unless given, so that the
    process ends at about the same noise; no beta exceeds 0.999.
    """
    scale = 1000 / num_timesteps
    start = scale * 1e-4 if beta_start is None else beta_start
    end = scale * 0.02 if beta_end is None else beta_end
    return np.minimum(np.linspace(start, end, num_timesteps, dtype=np.float64), MAX_BETA)


def cosine_betas(num_timesteps: int, offset: float = 0.008) -> Float[np.ndarray, "T"]:
    """Betas of the squared-cosine alpha-bar (Nichol & Dhariwal 2021, eq. 17), at most 0.999."""
    time = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alpha_bar = np.cos((time + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA)


def sigmoid_betas(num_timesteps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0):
    """Betas of the sigmoid alpha-bar (Jabri et al. 2023, appendix B), at most 0.999."""
    time = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alpha_bar = np.clip(_sigmoid_gamma(time, start, end, tau), 1e-9, 1.0)
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA)


BETAS = {"linear": linear_betas, "cosine": cosine_betas, "sigmoid": sigmoid_betas}


def discrete(betas: Float[np.ndarray, "T"], zero_terminal_snr: bool = False) -> Path:
    """The process in which step t adds noise of variance `betas[t]`; lambda is linear in between.

    With `zero_terminal_snr`, sqrt(alpha-bar) is shifted and scaled so that it ends at 0 and its
    first value is unchanged (Lin et al. 2024, algorithm 1).

    Raises:
      ConfigError: a beta is not strictly between 0 and 1.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not betas.size or not np.all((betas > 0) & (betas < 1)):
        raise ConfigError(
            f"betas must be a non-empty vector of numbers strictly between 0 and 1, got shape "
            f"{betas.shape} with values in [{betas.min():g}, {betas.max():g}]."
        )
    log_alpha = 0.5 * np.cumsum(np.log1p(-betas))
    if zero_terminal_snr:
        alpha = np.exp(log_alpha)
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        with np.errstate(divide="ignore"):
            log_alpha = np.log(alpha)
    with np.errstate(divide="ignore"):
        table = log_alpha - 0.5 * np.log(-np.expm1(2 * log_alpha))
    index = np.arange(len(table), dtype=np.float64)
    finite = np.isfinite(table)

    def lam(t: Any) -> Any:
        xp = _module(t)
        inside = xp.interp(t, index[finite], table[finite])
        return inside if finite.all() else xp.where(t >= index[-1], -xp.inf, inside)

    def time(value: Any) -> Any:
        inside = np.interp(-np.asarray(value), -table[finite], index[finite])
        return np.where(np.isneginf(value), index[-1], inside)

    return Path("preserving", lam, time, lambda t: t, 0.0, float(len(table) - 1), len(table))


# ---- in continuous time --------------------------------------------------------------------------


def linear(beta_min: float = 0.1, beta_max: float = 20.0, first: float = 1e-3) -> Path:
    """log alpha_t = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2 (Song et al. 2021b, eq. 33)."""

    def lam(t: Any) -> Any:
        xp = _module(t)
        log_alpha = -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min
        return log_alpha - 0.5 * xp.log(-xp.expm1(2 * log_alpha))

    def time(value: Any) -> Any:  # -2 log alpha = log(1 + e^(-2 lambda)), a quadratic in t
        c = np.logaddexp(0.0, -2 * np.asarray(value, np.float64))
        root = np.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * c)
        return 2 * c / (root + beta_min)

    return Path("preserving", lam, time, _thousand, first, 1.0)


def cosine(clip: float = CLIP, most: float = 7.5) -> Path:
    """alpha_t = cos(pi t / 2), sigma_t = sin(pi t / 2), between lambda = `most` and -`clip`.

    Without `clip`, lambda at t = 1 is minus infinity, and a sampler's first step infinitely long.
    """

    def lam(t: Any) -> Any:
        xp = _module(t)
        return xp.clip(-xp.log(xp.tan(0.5 * xp.pi * t)), -clip, most)

    def time(value: Any) -> Any:
        return 2 / np.pi * np.arctan(np.exp(-np.asarray(value, np.float64)))

    return Path("preserving", lam, time, _thousand, float(time(most)), float(time(-clip)))


def _sigmoid_gamma(t: Any, start: float, end: float, tau: float) -> Any:
    xp = _module(t)

    def inner(u: Any) -> Any:
        return 1 / (1 + xp.exp(-u / tau))

    low, high = (1 / (1 + math.exp(-u / tau)) for u in (start, end))
    return (high - inner(t * (end - start) + start)) / (high - low)


def sigmoid(
    start: float = -3.0, end: float = 3.0, tau: float = 1.0, clip: float = CLIP, most: float = 7.5
) -> Path:
    """alpha_t^2 is a segment of a sigmoid (Jabri et al. 2023, appendix B); lambda is clipped.

    The difference of two sigmoids is computed as sinh over two cosh, without cancellation.
    """
    low, high = (1 / (1 + math.exp(-u / tau)) for u in (start, end))
    width = 0.5 * (end - start) / tau
    constant = 0.5 * math.log(math.cosh(0.5 * start / tau) / math.cosh(0.5 * end / tau))

    def lam(t: Any) -> Any:
        xp = _module(t)
        with np.errstate(divide="ignore"):
            ratio = xp.log(xp.sinh(width * (1 - t))) - xp.log(xp.sinh(width * t))
        return xp.clip(0.5 * ratio + constant, -clip, most)

    def time(value: Any) -> Any:
        gamma = 1 / (1 + np.exp(-2 * np.asarray(value, np.float64)))
        inside = high - gamma * (high - low)
        return (tau * np.log(inside / (1 - inside)) - start) / (end - start)

    return Path("preserving", lam, time, _thousand, float(time(most)), float(time(-clip)))


def flow(first: float = 1e-3) -> Path:
    """alpha_t = 1 - t, sigma_t = t: straight lines (Liu et al. 2023; Lipman et al. 2023)."""

    def lam(t: Any) -> Any:
        xp = _module(t)
        with np.errstate(divide="ignore"):
            return xp.log1p(-t) - xp.log(t)

    def time(value: Any) -> Any:
        return np.exp(-np.logaddexp(0.0, np.asarray(value, np.float64)))

    return Path("linear", lam, time, _thousand, first, 1.0)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Path:
    """sigma_t = t, alpha_t = 1, time input 1000 log(t) / 4 (Karras et al. 2022, table 1)."""

    def lam(t: Any) -> Any:
        return -_module(t).log(t)

    def time(value: Any) -> Any:
        return np.exp(-np.asarray(value, np.float64))

    def time_input(t: Any) -> Any:
        return 250.0 * _module(t).log(t)

    return Path("exploding", lam, time, time_input, sigma_min, sigma_max)


def _thousand(t: Any) -> Any:
    return 1000.0 * t


def shifted(path: Path, factor: float) -> Path:
    """The path whose sigma / alpha is `factor` times as large at every time.

    For images `factor` times as wide, in which averages over neighbouring pixels have less noise
    (Hoogeboom et al. 2023, eq. 3). For a flow it is t -> s t / (1 + (s - 1) t) (Esser et al. 2024,
    eq. 23).
    """
    if factor == 1:
        return path
    offset = math.log(factor)
    return path._replace(
        lam=lambda t: path.lam(t) - offset,
        time=lambda lam: path.time(np.asarray(lam, np.float64) + offset),
    )


def make(
    name: str, num_timesteps: int = 0, zero_terminal_snr: bool = False, shift: float = 1.0
) -> Path:
    """The path with the name and options of a config.

    Args:
      name: of NAMES.
      num_timesteps: T of a process in discrete time, for "linear", "cosine" and "sigmoid"; 0 for
        continuous time.
      zero_terminal_snr: whether a discrete process ends in pure noise.
      shift: see `shifted`.

    Raises:
      ConfigError: an unknown name, or one without a form in discrete time; an option out of range.
    """
    one_of("diffusion.path", name, NAMES)
    require(shift > 0, "diffusion.shift", shift, "more than 0")
    if num_timesteps:
        one_of("diffusion.path (with num_timesteps)", name, tuple(BETAS))
        require(num_timesteps >= 2, "diffusion.num_timesteps", num_timesteps, "at least 2, or 0")
        return shifted(discrete(BETAS[name](num_timesteps), zero_terminal_snr), shift)
    if zero_terminal_snr:
        raise ConfigError(
            "diffusion.zero_terminal_snr=True: a path in continuous time has no last step to move. "
            'Set diffusion.num_timesteps, or path="flow", which ends in pure noise.'
        )
    makers = {"linear": linear, "cosine": cosine, "sigmoid": sigmoid, "flow": flow, "edm": edm}
    return shifted(makers[name](), shift)
