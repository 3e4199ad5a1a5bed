"""Discrete-time Gaussian diffusion: noise schedules, conversions and samplers over a denoiser.

Everything is written for the process q(x_t | x_0) = N(alpha_t x_0, sigma_t^2) with
alpha_t^2 + sigma_t^2 = 1 (variance preserving), t = 0 ... T-1; index t here is step t+1 of
Ho et al. (2020), whose alpha-bar is our alpha^2.

A sampler is a function `(predict, schedule, x, key, *, clip, **its own options) -> x_0`, found by
name in `SAMPLERS`. Fewer steps are a shorter schedule: `respace(schedule, steps)` gives one over
a subset of the timesteps, and no sampler knows the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

MAX_BETA = 0.999  # Nichol & Dhariwal (2021): keeps the last steps from becoming singular
PREDICTIONS = ("epsilon", "x0", "v")
VARIANCES = ("fixed_small", "fixed_large")
SPACINGS = ("trailing", "leading")


class Schedule(NamedTuple):
    """A noise schedule over S timesteps: float32 tables, worked out in float64.

    Attributes:
      timesteps: the timestep of the trained process at each index, as the network is told it.
      log_alpha_bar: log alpha_t^2 in float64, from which all the others follow.
      alpha: sqrt(alpha-bar), how much of x_0 is left.
      sigma: sqrt(1 - alpha-bar), how much noise there is.
      alpha_previous: alpha one index earlier, 1 at index 0.
      sigma_previous: sigma one index earlier, 0 at index 0.
      beta: 1 - alpha-bar_t / alpha-bar_{t-1}, the variance one step adds.
      posterior_x0: coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0), Ho et al. eq. 7.
      posterior_xt: coefficient of x_t in the same.
      posterior_variance: its variance, beta tilde of the same equation; 0 at index 0.
    """

    timesteps: Int[np.ndarray, "S"]
    log_alpha_bar: Float[np.ndarray, "S"]
    alpha: Float[np.ndarray, "S"]
    sigma: Float[np.ndarray, "S"]
    alpha_previous: Float[np.ndarray, "S"]
    sigma_previous: Float[np.ndarray, "S"]
    beta: Float[np.ndarray, "S"]
    posterior_x0: Float[np.ndarray, "S"]
    posterior_xt: Float[np.ndarray, "S"]
    posterior_variance: Float[np.ndarray, "S"]


class Prediction(NamedTuple):
    """What a denoiser says of x_t, as a consistent pair: x_t = alpha_t x0 + sigma_t epsilon."""

    x0: Float[Array, "B ..."]
    epsilon: Float[Array, "B ..."]


Predict = Callable[[Float[Array, "B ..."], Int[Array, "B"]], Prediction]


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


NOISE_SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


def schedule_from_betas(betas: Float[np.ndarray, "T"]) -> Schedule:
    """The schedule in which step t adds noise of variance `betas[t]`.

    Raises:
      ValueError: a beta is not strictly between 0 and 1.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not betas.size or not np.all((betas > 0) & (betas < 1)):
        raise ValueError(
            f"betas must be a non-empty vector of numbers strictly between 0 and 1, got shape "
            f"{betas.shape} with values in [{betas.min():g}, {betas.max():g}]."
        )
    return _tabulate(np.arange(betas.size), np.cumsum(np.log1p(-betas)))


def _tabulate(timesteps: np.ndarray, log_alpha_bar: np.ndarray) -> Schedule:
    """Tables in float64, free of cancellation at both ends, then rounded once to float32."""
    previous = np.concatenate([[0.0], log_alpha_bar[:-1]])
    sigma2, sigma2_previous = -np.expm1(log_alpha_bar), -np.expm1(previous)
    beta = -np.expm1(log_alpha_bar - previous)
    tables = dict(
        alpha=np.exp(0.5 * log_alpha_bar),
        sigma=np.sqrt(sigma2),
        alpha_previous=np.exp(0.5 * previous),
        sigma_previous=np.sqrt(sigma2_previous),
        beta=beta,
        posterior_x0=np.exp(0.5 * previous) * beta / sigma2,
        posterior_xt=np.exp(0.5 * (log_alpha_bar - previous)) * sigma2_previous / sigma2,
        posterior_variance=beta * sigma2_previous / sigma2,
    )
    return Schedule(
        timesteps=np.asarray(timesteps, np.int32),
        log_alpha_bar=log_alpha_bar,
        **{name: table.astype(np.float32) for name, table in tables.items()},
    )


def respace(schedule: Schedule, steps: int | None, spacing: str = "trailing") -> Schedule:
    """The schedule over `steps` of the timesteps (Nichol & Dhariwal 2021, section 4).

    "trailing" takes floor(k T / steps) - 1 for k = 1 ... steps and so always starts from the
    last, noisiest timestep, as training's x_T does (Lin et al. 2023, section 3.3); "leading"
    takes k floor(T / steps) for k = 0 ... steps - 1, as Song et al. (2021) did.

    Args:
      schedule: over all timesteps of the trained process.
      steps: how many to keep, or None for all.
      spacing: "trailing" or "leading".

    Raises:
      ValueError: `steps` is not between 1 and T, or there is no such spacing.
    """
    total = len(schedule.timesteps)
    if steps is None:
        return schedule
    if not 1 <= steps <= total:
        raise ValueError(
            f"steps={steps}: a sampler takes between 1 and {total} steps here, the number of "
            "timesteps that the model was trained with."
        )
    if spacing == "trailing":
        kept = np.arange(1, steps + 1) * total // steps - 1
    elif spacing == "leading":
        kept = np.arange(steps) * (total // steps)
    else:
        raise ValueError(f"spacing={spacing!r}: expected one of {', '.join(SPACINGS)}.")
    return _tabulate(schedule.timesteps[kept], schedule.log_alpha_bar[kept])


def snr(schedule: Schedule) -> Float[np.ndarray, "S"]:
    """Signal-to-noise ratio alpha^2 / sigma^2 at each index, in float64."""
    return 1 / np.expm1(-schedule.log_alpha_bar)


def model_variance(schedule: Schedule, kind: str) -> Float[np.ndarray, "S"]:
    """Variance of the reverse step p(x_{t-1} | x_t) (Ho et al. 2020, section 3.2).

    "fixed_small" is beta tilde, "fixed_large" is beta. At index 0, where beta tilde is 0 and no
    noise is drawn, both give beta tilde at index 1: the width of the decoder of L_0, as in the
    authors' code.

    Raises:
      ValueError: there is no such kind.
    """
    if kind not in VARIANCES:
        raise ValueError(f"variance={kind!r}: expected one of {', '.join(VARIANCES)}.")
    table = schedule.posterior_variance if kind == "fixed_small" else schedule.beta
    return np.concatenate([schedule.posterior_variance[:2][-1:], table[1:]])


def _rows(table: np.ndarray, index: Int[Array, "B"] | int, ndim: int) -> Float[Array, "B ..."]:
    """Entries of a table at `index`, shaped to broadcast over arrays of `ndim` dimensions."""
    values = jnp.asarray(table, jnp.float32)[index]
    return values.reshape(values.shape + (1,) * (ndim - values.ndim)) if values.ndim else values


def q_sample(
    schedule: Schedule,
    x0: Float[Array, "B ..."],
    index: Int[Array, "B"],
    noise: Float[Array, "B ..."],
) -> Float[Array, "B ..."]:
    """Draws x_t given x_0 and standard normal noise (Ho et al. 2020, eq. 4)."""
    alpha, sigma = (_rows(a, index, x0.ndim) for a in (schedule.alpha, schedule.sigma))
    return alpha * x0 + sigma * noise


def posterior_mean(
    schedule: Schedule,
    x0: Float[Array, "B ..."],
    x: Float[Array, "B ..."],
    index: Int[Array, "B"] | int,
) -> Float[Array, "B ..."]:
    """Mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
    c0, ct = (_rows(a, index, x.ndim) for a in (schedule.posterior_x0, schedule.posterior_xt))
    return c0 * x0 + ct * x


def prediction_target(
    kind: str,
    schedule: Schedule,
    x0: Float[Array, "B ..."],
    noise: Float[Array, "B ..."],
    index: Int[Array, "B"],
) -> Float[Array, "B ..."]:
    """What a network of this kind should output.

    "epsilon": the noise; "x0": the data; "v": alpha epsilon - sigma x_0 (Salimans & Ho 2022,
    section 4).
    """
    if kind == "epsilon":
        return noise
    if kind == "x0":
        return x0
    if kind == "v":
        alpha, sigma = (_rows(a, index, x0.ndim) for a in (schedule.alpha, schedule.sigma))
        return alpha * noise - sigma * x0
    raise ValueError(f"prediction={kind!r}: expected one of {', '.join(PREDICTIONS)}.")


def to_prediction(
    kind: str,
    schedule: Schedule,
    output: Float[Array, "B ..."],
    x: Float[Array, "B ..."],
    index: Int[Array, "B"] | int,
) -> Prediction:
    """Turns a network's output at x_t into the (x0, epsilon) that it implies.

    Inverts `prediction_target` with x_t = alpha x0 + sigma epsilon (Salimans & Ho 2022,
    section 4 and appendix D).
    """
    alpha, sigma = (_rows(a, index, x.ndim) for a in (schedule.alpha, schedule.sigma))
    if kind == "epsilon":
        return Prediction((x - sigma * output) / alpha, output)
    if kind == "x0":
        return Prediction(output, (x - alpha * output) / sigma)
    if kind == "v":
        return Prediction(alpha * x - sigma * output, alpha * output + sigma * x)
    raise ValueError(f"prediction={kind!r}: expected one of {', '.join(PREDICTIONS)}.")


def clip_prediction(
    schedule: Schedule,
    prediction: Prediction,
    x: Float[Array, "B ..."],
    index: Int[Array, "B"] | int,
) -> Prediction:
    """Clips x0 to [-1, 1] and works epsilon out again, so that the pair still explains x_t.

    This is what guided diffusion does, and diffusers with `use_clipped_model_output=True`.
    """
    x0 = jnp.clip(prediction.x0, -1.0, 1.0)
    return to_prediction("x0", schedule, x0, x, index)


def ancestral_step(
    schedule: Schedule,
    index: Int[Array, ""] | int,
    x: Float[Array, "B ..."],
    prediction: Prediction,
    noise: Float[Array, "B ..."],
    *,
    variance: str = "fixed_small",
) -> Float[Array, "B ..."]:
    """One step of x_t -> x_{t-1} (Ho et al. 2020, algorithm 2); no noise enters at index 0."""
    deviation = _rows(np.sqrt(model_variance(schedule, variance)), index, x.ndim)
    mean = posterior_mean(schedule, prediction.x0, x, index)
    return mean + jnp.where(jnp.asarray(index) > 0, deviation, 0.0) * noise


def ddim_step(
    schedule: Schedule,
    index: Int[Array, ""] | int,
    prediction: Prediction,
    noise: Float[Array, "B ..."] | None = None,
    *,
    eta: float = 0.0,
) -> Float[Array, "B ..."]:
    """One step of x_t -> x_{t-1} (Song et al. 2021, eq. 12 and 16).

    Args:
      schedule: the timesteps that the sampler visits.
      index: where x_t is in it.
      prediction: what the denoiser says at x_t.
      noise: standard normal, needed when `eta` is not 0.
      eta: 0 gives the deterministic map, 1 the ancestral sampler with the small variance.
    """
    ndim = prediction.x0.ndim
    alpha = _rows(schedule.alpha_previous, index, ndim)
    if eta == 0:
        return (
            alpha * prediction.x0 + _rows(schedule.sigma_previous, index, ndim) * prediction.epsilon
        )
    variance = eta**2 * schedule.posterior_variance.astype(np.float64)
    direction = np.sqrt(np.maximum(schedule.sigma_previous.astype(np.float64) ** 2 - variance, 0))
    return (
        alpha * prediction.x0
        + _rows(direction, index, ndim) * prediction.epsilon
        + _rows(np.sqrt(variance), index, ndim) * noise
    )


def _denoise(
    predict: Predict,
    schedule: Schedule,
    x: Float[Array, "B ..."],
    clip: bool,
    step: Callable[[Int[Array, ""], Float[Array, "B ..."], Prediction], Float[Array, "B ..."]],
) -> Float[Array, "B ..."]:
    """Runs `step` from the last index of the schedule to the first, under `lax.scan`."""

    def body(x, index):
        timestep = jnp.asarray(schedule.timesteps)[index]
        prediction = predict(x, jnp.full(x.shape[:1], timestep))
        if clip:
            prediction = clip_prediction(schedule, prediction, x, index)
        return step(index, x, prediction), None

    return jax.lax.scan(body, x, jnp.arange(len(schedule.timesteps))[::-1])[0]


def _noise(key: Array, index: Int[Array, ""], x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    return jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)


def ancestral(
    predict: Predict,
    schedule: Schedule,
    x: Float[Array, "B ..."],
    key: Array,
    *,
    clip: bool = True,
    variance: str = "fixed_small",
) -> Float[Array, "B ..."]:
    """DDPM's sampler (Ho et al. 2020, algorithm 2), from x_T to x_0.

    Args:
      predict: (x [B, ...], timesteps [B] int32) -> `Prediction`.
      schedule: the timesteps to visit; see `respace`.
      x: x_T, standard normal.
      key: draws the noise of every step.
      clip: keep the predicted x0 within [-1, 1].
      variance: "fixed_small" or "fixed_large".
    """

    def step(index, x, prediction):
        noise = _noise(key, index, x)
        return ancestral_step(schedule, index, x, prediction, noise, variance=variance)

    return _denoise(predict, schedule, x, clip, step)


def ddim(
    predict: Predict,
    schedule: Schedule,
    x: Float[Array, "B ..."],
    key: Array,
    *,
    clip: bool = True,
    eta: float = 0.0,
) -> Float[Array, "B ..."]:
    """DDIM's sampler (Song et al. 2021, eq. 12), from x_T to x_0; arguments as `ancestral`.

    Args:
      predict: (x [B, ...], timesteps [B] int32) -> `Prediction`.
      schedule: the timesteps to visit; see `respace`.
      x: x_T, standard normal.
      key: draws the noise of every step; unused when `eta` is 0.
      clip: keep the predicted x0 within [-1, 1].
      eta: how much noise, from 0 (deterministic) to 1 (ancestral, small variance).

    Raises:
      ValueError: `eta` is outside 0 ... 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: DDIM takes an eta between 0 (no noise) and 1 (ancestral).")

    def step(index, x, prediction):
        noise = _noise(key, index, x) if eta else None
        return ddim_step(schedule, index, prediction, noise, eta=eta)

    return _denoise(predict, schedule, x, clip, step)


SAMPLERS: dict[str, Callable[..., Float[Array, "B ..."]]] = {"ancestral": ancestral, "ddim": ddim}
