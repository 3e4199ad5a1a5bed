"""Diffusion and flow matching: any path, parametrisation, weighting, network and solver.

DDPM (Ho et al. 2020) in discrete time, its continuous-time successors (Song et al. 2021b; Kingma et
al. 2021), EDM (Karras et al. 2022, 2024) and rectified flow (Liu et al. 2023; Esser et al. 2024),
on images or on the latents of a stage (Rombach et al. 2022). With `methods.derived_conditions` the
decoder and the upsamplers of DALL-E 2 (Ramesh et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from genjax.config import ConfigError, one_of, read_options, require
from genjax.method import Aux, Batch, DataSpec, Method, Phase, Rules, Stage, Tree
from genjax.methods import derived_conditions, starts
from genjax.methods.composition import prompt_of
from genjax.methods.denoiser import (
    Denoiser,
    Known,
    check_conditions,
    fields_of,
    network,
    rows_of,
    shape_of,
)
from genjax.methods.diffusion_likelihood import evaluate
from genjax.methods.diffusion_options import Options, path_of
from genjax.methods.diffusion_sampling import check_guidance, plan, sample
from genjax.networks import conditioning, edm2_unet
from genjax.nn.functional import Functional, functional
from genjax.sampling import bound, parametrisation, paths, solvers
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.paths import Levels, Path

WEIGHTINGS = ("simple", "min_snr", "variational", "uncertainty")
TIMES = ("uniform", "logit_normal", "lognormal")
COUPLINGS = ("independent", "optimal_transport")
LEARNED = 1e-3  # weight of the bound next to the simple loss (Nichol & Dhariwal 2021, section 3.1)


def options_from_config(section: ConfigDict, spec: DataSpec) -> Options:
    """Reads and checks the `diffusion` section.

    Raises:
      ConfigError: an unknown key or choice, a number out of range, or a condition that the data
        do not have or that a network cannot take.
    """
    o = read_options(section, "diffusion", Options)
    path = path_of(o)
    T = o.num_timesteps
    parametrisation.check(o.prediction, path)
    one_of("diffusion.weighting", o.weighting, WEIGHTINGS)
    one_of("diffusion.times", o.times, TIMES)
    one_of("diffusion.coupling", o.coupling, COUPLINGS)
    one_of("diffusion.variance", o.variance, solvers.VARIANCES)
    if T:
        one_of("diffusion.times (with num_timesteps)", o.times, ("uniform",))
    elif o.variance != "fixed_small":
        raise ConfigError(
            f"diffusion.variance={o.variance!r} needs steps in discrete time: set "
            "diffusion.num_timesteps, or variance='fixed_small'."
        )
    if o.weighting == "variational" and o.times != "uniform":
        raise ConfigError(
            f"diffusion.times={o.times!r}: weighting='variational' is the bound only with times "
            "'uniform'. Change one of them."
        )
    if o.times == "lognormal" and o.path != "edm":
        raise ConfigError(
            f"diffusion.times='lognormal' draws sigma, on diffusion.path='edm'; the path is "
            f"{o.path!r}. Use 'uniform' or 'logit_normal'."
        )
    K = o.eval_timesteps
    choice = f"0 (all of them, exact) or between 2 and num_timesteps={T}" if T else "at least 1"
    require((K == 0 or 2 <= K <= T) if T else K >= 1, "diffusion.eval_timesteps", K, choice)
    steps = o.likelihood_steps
    require(steps % 2 == 0, "diffusion.likelihood_steps", steps, "an even number, or 0")
    check_conditions(o, "diffusion", spec)
    plan(o, path)
    check_guidance(o, o.guidance != 1, False)
    return o


# ---- the model -----------------------------------------------------------------------------------


def build(
    config: ConfigDict, spec: DataSpec, stages: Mapping[str, Stage] = MappingProxyType({})
) -> Method:
    """Diffusion with the network of `config.model` on the images or latents of `spec`.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Network` and
    `RULES`, and `project` if its parameters are projected; `config.model.denoiser` are its options.

    Raises:
      ConfigError: the data are neither, or `config.diffusion` asks for something that does not
        exist.
    """
    options = options_from_config(config.diffusion, spec)
    derived = derived_conditions.parts(options, spec, stages)
    options, spec = derived_conditions.extended(options, spec, derived)
    channels = shape_of(spec)[-1] * (2 if options.variance == "learned" else 1)
    chosen = network(config, spec, channels, options)
    dtype = jnp.dtype(config.precision)
    method = from_network(chosen.net, options, spec, chosen.rules, chosen.project, dtype)
    own = starts.given(fields_of(options, spec), spec.generated)
    own = {name: field for name, field in own.items() if name not in method.conditions}
    method = method._replace(conditions={**method.conditions, **own})
    return derived_conditions.joined(method, derived, spec)


def from_network(
    net: Functional,
    options: Options,
    spec: DataSpec,
    rules: Rules,
    project: Mapping[str, Callable[[Tree], Tree]] = MappingProxyType({}),
    dtype: Any = jnp.float32,
) -> Method:
    """The family with any network `apply(params, mutable, x, t, label)`: see `Denoiser`.

    `dtype` is the compute type of what reads texts for it.
    """
    model = denoiser_of(net, options, spec, dtype)
    uncertainty = model.uncertainty
    names = ("denoiser", "uncertainty") if uncertainty else ("denoiser",)
    if uncertainty:
        project = {**project, "uncertainty": edm2_unet.project}
        rules = (*rules, *edm2_unet.RULES)
    if model.rows:
        rules = (*conditioning.RULES, *rules)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        arrays = {"denoiser": model.init(key)}
        if uncertainty:
            arrays["uncertainty"] = uncertainty.init(jax.random.fold_in(key, 1))
        return {n: m[0] for n, m in arrays.items()}, {n: m[1] for n, m in arrays.items()}

    prompt = prompt_of(options.conditions, spec)
    return Method(
        init=init,
        phases=(Phase(names if uncertainty else "denoiser", partial(loss, model)),),
        evaluate=partial(evaluate, model),
        sample=partial(sample, model),
        plan=partial(
            plan, options, model.path, conditioning.text_of(spec.fields[prompt]) if prompt else None
        ),
        guided=True,
        rules=rules,
        project=project,
        conditions=fields_of(options, spec),
        apply=partial(apply, model),
    )


def denoiser_of(
    net: Functional, options: Options, spec: DataSpec, dtype: Any = jnp.float32
) -> Denoiser:
    """The model of a network, with an uncertainty network if the uncertainty is learned."""
    uncertainty = None
    if options.weighting == "uncertainty":
        uncertainty = functional(lambda rngs: edm2_unet.Uncertainty(rngs=rngs))
    rows = rows_of(options, spec, dtype)
    return Denoiser(net, options, spec, path_of(options), uncertainty, rows)


def apply(model: Denoiser, params: dict, mutable: dict, batch: Batch) -> Prediction:
    """The denoiser's prediction for noisy data, for a run that has this one as a stage.

    Args:
      model: model of the stage.
      params: parameters of its networks.
      mutable: state of its networks.
      batch: `x` [B, H, W, C], its noise `level`, each condition by name, and optionally `hidden`
        [B], the mask of the examples whose conditions are hidden.
    """
    variables = (params["denoiser"], mutable["denoiser"])
    fields = fields_of(model.options, model.spec)
    known = Known({name: batch[name] for name in fields}, batch.get("hidden"))
    return model.predict(
        *variables, batch["x"], batch["level"], model.conditioning(variables[0], known)
    )


# ---- training ------------------------------------------------------------------------------------


def draw_times(o: Options, path: Path, key: Array, count: int) -> Array:
    """Times of a batch, stratified: int32 timesteps, or float32 within the path."""
    u = bound.stratified_uniform(key, count)
    if path.steps:
        return jnp.minimum((u * path.steps).astype(jnp.int32), path.steps - 1)
    if o.times == "uniform":
        return path.first + u * (path.last - path.first)
    z = jax.scipy.special.ndtri(jnp.clip(u, 1e-6, 1 - 1e-6)) * o.times_std + o.times_mean
    t = jnp.exp(z) if o.times == "lognormal" else jax.nn.sigmoid(z)
    return jnp.clip(t, path.first, path.last)


def output_weight(o: Options, path: Path, t: Array, at: Levels) -> Float[Array, "B"]:
    """The weight of the squared error of the network's output.

    "simple" is 1 (Ho et al. 2020, eq. 14, for epsilon; Karras et al. 2022, eq. 8, for "edm").
    "min_snr" weights the error of x_0 by min(SNR, gamma) (Hang et al. 2023). "variational" in
    continuous time weighs it by -d SNR / 2 dt (Kingma et al. 2021, eq. 18).
    """
    if o.weighting in ("simple", "uncertainty"):
        return jnp.ones_like(at.alpha)
    snr = jnp.square(at.alpha / at.sigma)
    if o.weighting == "min_snr":
        x0_weight = jnp.minimum(snr, o.min_snr_gamma)
    else:
        width = path.last - path.first
        inside = jnp.minimum(t, path.last - 1e-6 * width)  # at pure noise lambda has no derivative
        x0_weight = -snr * jax.vmap(jax.grad(path.lam))(inside) * width
    # The size of d x_0 / d output: the output's factor in `interpret`.
    x0_factor = {
        "epsilon": at.sigma / jnp.maximum(at.alpha, 1e-20),
        "x0": jnp.ones_like(at.alpha),
        "v": at.sigma / (jnp.square(at.alpha) + jnp.square(at.sigma)),
        "velocity": at.sigma / (at.alpha + at.sigma),
        "edm": parametrisation.preconditioning(at, o.sigma_data).out,
    }[o.prediction]
    return x0_weight * jnp.square(x0_factor)


def coupled(o: Options, x0: Array, noise: Array) -> Float[Array, "B ..."]:
    """The noise of each example: as drawn, or permuted to be near the data.

    The permutation minimises the summed squared distance within the (micro)batch (Tong et al. 2024,
    algorithm 3). Data and conditions keep their order.
    """
    if o.coupling == "independent":
        return noise
    a, b = x0.reshape(len(x0), -1), noise.reshape(len(x0), -1)
    cost = -(a @ b.T)
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    return noise[columns[jnp.argsort(rows)]]


def loss(
    model: Denoiser, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The weighted denoising loss of a microbatch: see `output_weight`.

    With "variational" weighting in discrete time it is an unbiased estimate of the bound minus its
    constant L_T, in nats per dimension, without clipping x0_hat. A learned variance adds 0.001
    times the bound, without a gradient of its mean (Nichol & Dhariwal 2021, eq. 16).
    """
    o, path = model.options, model.path
    key_time, key_noise, key_label, key_net = (jax.random.fold_in(key, i) for i in range(4))
    x0 = model.data(batch)
    B = x0.shape[0]
    t = draw_times(o, path, key_time, B)
    at = paths.tabulated(path, t)
    noise = coupled(o, x0, jax.random.normal(key_noise, x0.shape))
    x = paths.noised(at, x0, noise)
    variables = (params["denoiser"], mutable["denoiser"])
    cond = model.conditioning(variables[0], model.known(batch, key_label))
    output, fraction, changed = model(*variables, x, at, cond, key=key_net, train=True)
    prediction = model.interpret(output, at, x)
    changed = {"denoiser": changed}
    if o.weighting == "variational" and path.steps:
        steps = bound.steps_of(path)
        if fraction is None:
            losses = path.steps * bound.term(steps, o.variance, x0, prediction.x0, t)
        else:
            losses = path.steps * bound.learned_term(steps, x0, prediction.x0, fraction, t)
    else:
        target = parametrisation.target(o.prediction, at, x0, noise, o.sigma_data)
        losses = output_weight(o, path, t, at) * bound.per_example(jnp.square(output - target))
        if fraction is not None:
            fixed = jax.lax.stop_gradient(prediction.x0)
            terms = bound.learned_term(bound.steps_of(path), x0, fixed, fraction, t)
            losses += LEARNED * path.steps * terms
    metrics = {"epsilon_mse": jnp.mean(jnp.square(prediction.epsilon - noise))}
    return model.summed_up(params, mutable, losses, at.time_input, metrics, changed)
