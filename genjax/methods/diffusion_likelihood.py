"""Evaluation of diffusion models: the variational bound, and the likelihood by an ODE.

For data that are no 8-bit images, such as latents, the squared error of epsilon replaces the bound.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.method import Batch
from genjax.methods.denoiser import Denoiser
from genjax.networks.conditioning import Conditioning
from genjax.sampling import bound, paths
from genjax.sampling.likelihood import log_likelihood
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.paths import Levels

BIN = 2.0 / 255.0  # width of one of the 256 values, in data scaled to [-1, 1]


def evaluate(
    model: Denoiser, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"]]:
    """The variational bound of each example, and with `likelihood_steps` its likelihood.

    See `_bound` and `_likelihood`.
    """
    x0 = model.data(batch)
    cond = model.conditioning(params["denoiser"], model.known(batch))
    metrics = _bound(model, params, mutable, x0, cond, key)
    if model.options.likelihood_steps:
        metrics |= _likelihood(model, params, mutable, x0, cond, jax.random.fold_in(key, 2))
    return metrics


def _bound(
    model: Denoiser, params: dict, mutable: dict, x0: Array, cond: Conditioning, key: Array
) -> dict[str, Float[Array, "B"]]:
    """Bits per dimension of each 8-bit image (variational bound), with prior and decoder terms.

    x0_hat is clipped to [-1, 1], as in the sampler; the noise is drawn once per time. For other
    data it is the squared error of epsilon, averaged over times uniform in lambda.
    """
    o, path = model.options, model.path
    key_time, key_noise = (jax.random.fold_in(key, i) for i in range(2))
    variables = (params["denoiser"], mutable["denoiser"])

    def predicted(count: Array, at: Levels) -> tuple[Prediction, Array]:
        noise = jax.random.normal(jax.random.fold_in(key_noise, count), x0.shape)
        prediction = model.predict(*variables, paths.noised(at, x0, noise), at, cond)
        if model.clips:
            prediction = prediction._replace(x0=jnp.clip(prediction.x0, -1.0, 1.0))
        return prediction, noise

    if path.steps and model.bounded:
        return _discrete_bound(model, x0, predicted, key_time)
    highest, lowest = (float(path.lam(t)) for t in (path.first, path.last))
    lowest = max(lowest, -12.0)
    K, B = o.eval_timesteps or path.steps, x0.shape[0]
    u = (jnp.arange(K)[:, None] + bound.stratified_uniform(key_time, B)[None]) / K

    def term(count: Array, u: Float[Array, "B"]) -> tuple[Array, Array]:
        lam = lowest + u * (highest - lowest)
        table = np.linspace(lowest, highest, 4097)  # the time input, tabulated in float64
        time = jnp.interp(lam, table, paths.levels_at(path, table).time_input)
        at = Levels(time, *paths.scales(path.scaling, lam))
        prediction, noise = predicted(count, at)
        if model.bounded:
            return count + 1, bound.integrand(path, at, x0, prediction.x0)
        return count + 1, bound.per_example(jnp.square(prediction.epsilon - noise))

    _, terms = jax.lax.scan(term, 0, u)
    if not model.bounded:
        return {"epsilon_mse": terms.mean(0)}
    noise = jax.random.normal(jax.random.fold_in(key_noise, K), x0.shape)
    start = paths.noised(Levels(*map(jnp.float32, paths.levels(path, path.first))), x0, noise)
    decoder, prior = bound.decoder_term(path, x0, start), bound.prior_term(path, x0)
    return bound.in_bits(prior, terms.mean(0), decoder)


def _discrete_bound(model: Denoiser, x0: Array, predicted: Any, key: Array) -> dict[str, Array]:
    """The bound of Ho et al. 2020, eq. 5."""
    o, path, steps = model.options, model.path, bound.steps_of(model.path)
    kind = "fixed_small" if o.variance == "learned" else o.variance
    index, weight = bound.draw_timesteps(steps, kind, o.eval_timesteps, x0.shape[0], key)

    def term(count: Array, index: Array) -> tuple[Array, Array]:
        prediction, _ = predicted(count, paths.tabulated(path, index))
        if o.variance == "learned":
            return count + 1, bound.learned_term(
                steps, x0, prediction.x0, prediction.fraction, index
            )
        return count + 1, bound.term(steps, kind, x0, prediction.x0, index)

    _, terms = jax.lax.scan(term, 0, index)
    rest = (weight[1:] * terms[1:]).sum(axis=0)  # the first term is the decoder's, with weight 1
    return bound.in_bits(bound.prior_term(path, x0), rest, terms[0])


def _likelihood(
    model: Denoiser, params: dict, mutable: dict, x0: Array, cond: Conditioning, key: Array
) -> dict[str, Float[Array, "B"]]:
    """-log p by the probability-flow ODE, and the solver's error in the same unit.

    `bits_per_dim_ode` of 8-bit images bounds their bits from above: the images are dequantised by
    uniform noise (Theis et al. 2016, section 3.1), drawn once. For other data it is
    `nats_per_dim_ode`, of the scaled data. The divergence is Hutchinson's estimate, unbiased.
    """
    o = model.options
    key_noise, key_probe = jax.random.split(key)
    size = math.prod(x0.shape[1:])
    name, unit, shift = "nats_per_dim_ode", 1.0, 0.0
    if model.bounded:
        name, unit, shift = "bits_per_dim_ode", math.log(2), math.log(BIN)
        x0 = x0 + BIN * (jax.random.uniform(key_noise, x0.shape) - 0.5)

    def epsilon(x: Array, at: Levels) -> Array:
        return model.predict(params["denoiser"], mutable["denoiser"], x, at, cond).epsilon

    found = log_likelihood(
        epsilon,
        model.path,
        x0,
        steps=o.likelihood_steps,
        probes=o.likelihood_probes,
        key=key_probe,
    )
    return {
        name: -(found.log_p / size + shift) / unit,
        f"{name}_error": jnp.abs(found.error) / size / unit,
    }
