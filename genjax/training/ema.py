"""Averages of the parameters over the steps, one for each profile that the config names.

A profile is a name and a function: the weight with which the parameters after step t enter the
average. `config.ema.decay` lists exponential averages by their decays; `config.ema.power` lists
averages whose weights grow with a power of the step, by their relative standard deviations. After a
run, an average of any other length can be computed from several of the latter at several steps
(Karras et al. 2024, section 3.2): `coefficients` gives the weight of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from genjax.config import ConfigError

Tree = Any
Profile = Callable[[jax.Array], jax.Array]  # step, from 0 -> the weight of its parameters

LONGEST = 12**-0.5  # relative standard deviation of equal weights; that of every power is smaller
NOISE = 1e-12  # singular values below this share of the largest are rounding errors of float64


def exponential(decay: float, warmup: bool) -> Profile:
    """The profile 1 - d with d = `decay`.

    With `warmup`, d is min(decay, (1 + step) / (10 + step)), so that the average forgets the
    initial parameters early in a run.
    """

    def weight(step: jax.Array) -> jax.Array:
        d = jnp.asarray(decay, jnp.float32)
        return 1.0 - (jnp.minimum(d, (1.0 + step) / (10.0 + step)) if warmup else d)

    return weight


def exponent(deviation: float) -> float:
    """Returns gamma of the weights t^gamma whose standard deviation is this share of the run.

    The root above 0 of sigma^2 (gamma + 2)^2 (gamma + 3) = gamma + 1, for 0 < sigma < 12^(-1/2)
    (Karras et al. 2024, algorithm 2).
    """
    return float(np.roots([1, 7, 16 - deviation**-2, 12 - deviation**-2]).real.max())


def power(deviation: float) -> Profile:
    """1 - beta with beta = (1 - 1/t)^(gamma + 1), t = step + 1 (Karras et al. 2024, section 3.1).

    After t steps the parameters of step s have weight s^gamma, up to the difference between a sum
    and an integral. The initial parameters are forgotten after the first step.
    """
    factor = 1 + exponent(deviation)
    return lambda step: -jnp.expm1(factor * jnp.log1p(-1.0 / (step + 1.0)))


def profiles(config: ConfigDict) -> dict[str, Profile]:
    """The averages that `config.ema` lists, by their name in the state: "0.999", "power_0.05".

    Evaluations, samples and second stages use the first.
    """
    c = config.ema
    constant = {str(decay): exponential(decay, c.warmup) for decay in c.decay}
    return constant | {name: power(deviation) for name, deviation in powers(config).items()}


def powers(config: ConfigDict) -> dict[str, float]:
    """The averages whose weights grow with a power of the step: name -> standard deviation."""
    return {f"power_{deviation}": deviation for deviation in config.ema.power}


def init(config: ConfigDict, params: dict[str, Tree], trained: Iterable[str]) -> dict[str, Tree]:
    """Returns a copy of the averaged networks for each profile, by its name.

    Args:
      config: the whole config.
      params: by network.
      trained: the networks that the phases train: averaged unless `config.ema.networks` names
        others.

    Raises:
      ConfigError: `config.ema.networks` names one that is not trained.
    """
    names = config.ema.networks or tuple(sorted(trained))
    if unknown := set(names) - set(trained):
        raise ConfigError(
            f"config.ema.networks={tuple(names)!r}: {sorted(unknown)} is not trained. Trained "
            f"networks: {sorted(trained)}."
        )
    averaged = {name: params[name] for name in names}
    return {profile: jax.tree.map(jnp.array, averaged) for profile in profiles(config)}


def update(
    config: ConfigDict, ema: dict[str, Tree], params: dict[str, Tree], step: jax.Array
) -> dict[str, Tree]:
    """`ema <- ema + w (params - ema)` after the update of `step` (0-based); w is the profile's."""

    def averaged(weight: jax.Array, tree: Tree) -> Tree:
        new = {name: params[name] for name in tree}
        return jax.tree.map(lambda e, p: e + weight * (p - e), tree, new)

    return {name: averaged(profile(step), ema[name]) for name, profile in profiles(config).items()}


def evaluation_params(
    config: ConfigDict, params: dict[str, Tree], ema: dict[str, Tree]
) -> dict[str, Tree]:
    """Returns the parameters of evaluations and samples: the first profile's, else the raw."""
    first = next(iter(profiles(config)), None)
    return {**params, **(ema[first] if first else {})}


# ---- averages of other lengths -------------------------------------------------------------------


def inner(
    steps: Float[np.ndarray, "#a #b"],
    gammas: Float[np.ndarray, "#a #b"],
    other_steps: Float[np.ndarray, "#a #b"],
    other_gammas: Float[np.ndarray, "#a #b"],
) -> Float[np.ndarray, "a b"]:
    """The integral of the product of two profiles, each (gamma + 1) t^gamma / T^(gamma + 1) up to
    its step T and 0 after it (Karras et al. 2024, appendix C.3).
    """
    ratio = steps / other_steps
    power = np.where(steps < other_steps, other_gammas, -gammas)
    scale = (gammas + 1) * (other_gammas + 1) / (gammas + other_gammas + 1)
    return scale * ratio**power / np.maximum(steps, other_steps)


def coefficients(
    deviations: Sequence[float], steps: Sequence[int], deviation: float, step: int
) -> tuple[Float[np.ndarray, "n"], float]:
    """Returns the weight of each saved average in an average of another length, in float64.

    The sum's weights over the steps are the least-squares fit to those of the requested average,
    scaled to sum to 1 (Karras et al. 2024, algorithm 3, and its code). Profiles are scaled to unit
    norm, and singular values at the level of rounding are dropped: otherwise the solution for five
    profiles at fifty steps would be noise.

    Args:
      deviations: relative standard deviation of each saved average.
      steps: the step of each saved average.
      deviation: of the requested average: above 0 and below 12^(-1/2).
      step: of the requested average.

    Returns:
      The coefficients, whose sum is 1, and the norm of the error of their weights, relative to the
      norm of the requested weights.
    """
    wide = np.longdouble  # the system is nearly singular: the residual wants the digits
    t, gamma = np.array(steps, wide), np.array([exponent(d) for d in deviations], wide)
    requested = np.array([step], wide), np.array([exponent(deviation)], wide)
    products = inner(t[:, None], gamma[:, None], t, gamma)
    target, square = inner(t, gamma, *requested), inner(*requested, *requested).item()
    norms = np.sqrt(np.diag(products))
    scaled = products / np.outer(norms, norms)
    solution = np.zeros_like(target)
    for _ in range(3):  # the second and third correct the first's rounding
        residual = target / norms - scaled @ solution
        solution += np.linalg.lstsq(*(a.astype(np.float64) for a in (scaled, residual)), NOISE)[0]
    factors = solution / norms
    factors = factors / factors.sum()
    missed = square - 2 * factors @ target + factors @ products @ factors
    return factors.astype(np.float64), float(np.sqrt(max(missed, 0.0) / square))
