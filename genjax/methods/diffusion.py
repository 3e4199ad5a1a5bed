"""Diffusion and flow matching: any path, parametrisation, weighting, network and solver.

DDPM (Ho et al. 2020) in discrete time, its continuous-time successors (Song et al. 2021b; Kingma et
al. 2021), EDM (Karras et al. 2022, 2024) and rectified flow (Liu et al. 2023; Esser et al. 2024),
on images or on the latents of a stage (Rombach et al. 2022). With `methods.derived_conditions` the
decoder and the upsamplers of DALL-E 2 (Ramesh et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from genjax.checks import Finite, OtherWidth, Positive, Range, Rate, Share, Width, is_number
from genjax.config import ConfigError, one_of, read_options, require
from genjax.method import Aux, Batch, DataSpec, Method, Phase, Rules, Stage, Tree
from genjax.methods import derived_conditions
from genjax.methods.composition import NO_PROMPTS, Prompts, others_of, parsed_prompts, prompt_of
from genjax.methods.denoiser import (
    Denoiser,
    Known,
    Section,
    check_conditions,
    fields_of,
    network,
    rows_of,
    shape_of,
)
from genjax.methods.diffusion_likelihood import evaluate
from genjax.networks import edm2_unet
from genjax.networks import told as entering
from genjax.nn.functional import Functional, functional
from genjax.sampling import bound, grids, parametrisation, paths, solvers
from genjax.sampling import guidance as guiding
from genjax.sampling.conditions import Condition, complete
from genjax.sampling.guidance import Guidance
from genjax.sampling.logits import whole_number
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.paths import Levels, Path
from genjax.sampling.table import Denoise, Table, solve

WEIGHTINGS = ("simple", "min_snr", "variational", "uncertainty")
TIMES = ("uniform", "logit_normal", "lognormal")
COUPLINGS = ("independent", "optimal_transport")
PAIR_ALONE = ("euler", "ddim", "ddpm", "euler_ancestral", "dpm++_1s")
LEARNED = 1e-3  # weight of the bound next to the simple loss (Nichol & Dhariwal 2021, section 3.1)


class Options(NamedTuple):
    """The `diffusion` section of a config, and its defaults.

    Attributes:
      path: path of x_t: "linear", "cosine" or "sigmoid" (variance preserving), "flow" or "edm".
      num_timesteps: T of a process in discrete time; 0 for continuous time.
      zero_terminal_snr: whether a process in discrete time ends in pure noise.
      shift: factor of the noise at every time, for larger images.
      prediction: output of the network: "epsilon", "x0", "v", "velocity" or "edm".
      sigma_data: standard deviation of the data, for the preconditioning of "edm".
      weighting: weight of the squared error of the output: "simple"; "min_snr"; "variational",
        which gives the bound; "uncertainty", learned (Karras et al. 2024, eq. 21).
      min_snr_gamma: maximum of the signal-to-noise ratio in "min_snr".
      times: distribution of training times: "uniform", "logit_normal" (Esser et al. 2024) or
        "lognormal", of sigma / alpha (Karras et al. 2022).
      times_mean: mean of the normal distribution.
      times_std: its standard deviation.
      coupling: coupling of data and noise in a batch: "independent" or "optimal_transport" (Tong et
        al. 2024).
      variance: variance of DDPM's reverse step: "fixed_small", "fixed_large" or "learned", for
        which the network has twice the channels.
      class_conditional: whether the network is conditioned on the label.
      conditions: names of other fields of the data that the network is conditioned on: see
        `networks.told` for how each enters.
      context_width: width of the vectors for texts and rows, for cross-attention.
      context_depth: number of blocks of a transformer over the vectors of a text, which is trained
        with the network; 0: none.
      context_heads: its attention heads.
      label_dropout: share of training examples with all of their conditions hidden, for guidance.
      likelihood_steps: steps of the ODE for the likelihood in evaluations, even; 0: none. A step
        and its control take three calls of the network and its derivative per probe.
      likelihood_probes: random directions for the divergence; 0 is exact, at a call per dimension.
      eval_timesteps: network calls per example in the estimate of the bound; in discrete time the
        first call is for the decoder, and 0 uses all T timesteps.
      sampler: default solver.
      steps: default number of sampling steps; 0 uses all T.
      spacing: default spacing of the steps: see `sampling.grids`.
      eta: default noise, for solvers with this option.
      guidance: default scale of guidance; 1 is none.
      embedding: the stage whose vector of the image is a condition: a run of method "clip", or one
        of "embedding_prior", which also draws the vector for a caption; "": none.
      embedding_dropout: share of training examples with that vector alone hidden.
      text_dropout: share of training examples with an empty caption.
      text_encoder: the stage that reads captions for the network, frozen: a run of method "clip",
        "masked_lm" or "seq2seq"; "": the network has an embedding of its own.
      low_resolution: shorter side of the smaller image that is a condition; 0: none.
      low_resolution_stage: the stage that draws that image for the other conditions; "": it is
        always given.
      low_resolution_noise: default level of the noise in it, from 0 to 1; in training, levels are
        uniform.
    """

    path: str = "cosine"
    num_timesteps: Annotated[int, Range(0, 1_000_000)] = 1000
    zero_terminal_snr: bool = False
    shift: Positive = 1.0
    prediction: str = "epsilon"
    sigma_data: Positive = 0.5
    weighting: str = "simple"
    min_snr_gamma: Positive = 5.0
    times: str = "uniform"
    times_mean: Finite = 0.0
    times_std: Positive = 1.0
    coupling: str = "independent"
    variance: str = "fixed_small"
    class_conditional: bool = False
    conditions: tuple[str, ...] = ()
    context_width: Width = 128
    context_depth: Annotated[int, Range(0, 1000)] = 0
    context_heads: Width = 4
    label_dropout: Rate = 0.1
    likelihood_steps: Annotated[int, Range(0, 10_000)] = 0
    likelihood_probes: Annotated[int, Range(0, 10_000)] = 1
    eval_timesteps: Annotated[int, Range(0, 1_000_000)] = 32
    sampler: str = "dpm++_2m"
    steps: Annotated[int, Range(0, 1_000_000)] = 20
    spacing: str = "uniform"
    eta: Share = 0.0
    guidance: Finite = 1.0
    embedding: str = ""
    embedding_dropout: Rate = 0.0
    text_dropout: Rate = 0.0
    text_encoder: str = ""
    low_resolution: OtherWidth = 0
    low_resolution_stage: str = ""
    low_resolution_noise: Share = 0.1


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
    _guidable(o, o.guidance != 1, False)
    return o


def _guidable(o: Options, guided: bool, by_weights: bool) -> None:
    """Raises ConfigError if guidance has neither worse weights nor conditions to leave out.

    Also raises it for worse weights without guidance.
    """
    derived = (o.embedding or o.low_resolution) and o.label_dropout
    if guided and not by_weights and not (guidable(o) or derived):
        raise ConfigError(
            "guidance: the model must have been trained with diffusion.class_conditional=True or "
            "diffusion.conditions, and diffusion.label_dropout > 0, to be guided, or --guide_ema "
            "or --guide_checkpoint must name worse weights to guide away from. Use guidance=1."
        )
    if by_weights and not guided:
        raise ConfigError(
            "guidance=1 is none, but --guide_ema or --guide_checkpoint name weights for guidance: "
            "give --mode=sample --guidance=2, or remove them."
        )


def guidable(o: Section) -> bool:
    """Whether the network is also trained without its conditions."""
    return bool((o.class_conditional or o.conditions) and o.label_dropout)


def path_of(o: Options) -> Path:
    """The path that the options name."""
    return paths.make(o.path, o.num_timesteps, o.zero_terminal_snr, o.shift)


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
        rules = (*entering.RULES, *rules)

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
            plan, options, model.path, entering.text_of(spec.fields[prompt]) if prompt else None
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
    return model.predict(*variables, batch["x"], batch["level"], model.tell(variables[0], known))


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
    told = model.tell(variables[0], model.known(batch, key_label))
    output, fraction, changed = model(*variables, x, at, told, key=key_net, train=True)
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
    return model.summed_up(params, mutable, losses, at.told, metrics, changed)


# ---- sampling ------------------------------------------------------------------------------------


def plan(
    o: Options,
    path: Path,
    prompt: Field | None = None,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    times: tuple = (),
    grid_shift: float = 1.0,
    rho: float = 7.0,
    end: str = "data",
    eta: float | None = None,
    order: int | None = None,
    churn: float | None = None,
    warmup: str | None = None,
    guidance: float | None = None,
    guidance_kind: str = "linear",
    guidance_interval: tuple = (0.0, math.inf),
    guidance_rescale: float = 0.0,
    guidance_radius: float = math.inf,
    guidance_parallel: float = 1.0,
    guidance_momentum: float = 0.0,
    negative_prompt: str = "",
    more_prompts: tuple = (),
    threshold: float = 0.0,
) -> dict[str, Any]:
    """Turns options into keywords of `sample`; None takes the value of the `diffusion` section.

    Args:
      o: the section.
      path: path of the model.
      prompt: field of the text that the network is conditioned on.
      sampler: a name in `solvers.SOLVERS`.
      steps: number of steps; in discrete time 0 uses all T.
      spacing: spacing of the steps: see `grids.times`.
      times: the times of the steps, instead of `steps`.
      grid_shift: see `grids.times`.
      rho: parameter of the spacing "karras".
      end: where the last step ends: "data" or the path's "first" level.
      eta: noise, for solvers with this option.
      order: order, for solvers with this option.
      churn: noise that sampler "edm" adds and removes again, over all steps.
      warmup: first steps of sampler "pndm": "runge_kutta" or "multistep".
      guidance: scale; 1 is none and does not double the network's batch.
      guidance_kind: "linear", "projected" (APG) or "cfg++".
      guidance_interval: (low, high) of sigma / alpha where guidance is used.
      guidance_rescale: phi of Lin et al. 2024.
      guidance_radius: parameter of "projected".
      guidance_parallel: parameter of "projected".
      guidance_momentum: parameter of "projected".
      negative_prompt: a text to guide away from, in place of none.
      more_prompts: pairs (text, weight). Each adds guidance towards its text, of the scale times
        its weight, or away from it (Liu et al. 2022, eq. 11).
      threshold: percentile of dynamic thresholding, such as 99.5; 0 clips to the data's range.

    Raises:
      ConfigError: an option that does not exist or that this model does not support.
    """
    overrides = dict(sampler=sampler, steps=steps, spacing=spacing, eta=eta, guidance=guidance)
    numbers = dict(grid_shift=grid_shift, rho=rho, threshold=threshold)
    numbers |= dict(guidance_rescale=guidance_rescale, guidance_parallel=guidance_parallel)
    numbers |= dict(guidance_momentum=guidance_momentum)
    optional = dict(eta=eta, guidance=guidance, churn=churn)
    numbers |= {name: value for name, value in optional.items() if value is not None}
    for name, value in numbers.items():
        require(is_number(value), name, value, "a finite number")
    for name, value in {"steps": steps, "order": order}.items():
        require(value is None or whole_number(value), name, value, "a whole number")
    radius_ok = is_number(guidance_radius, infinite=True)
    require(radius_ok, "guidance_radius", guidance_radius, "a number")
    interval_ok = isinstance(guidance_interval, tuple | list) and len(guidance_interval) == 2
    interval_ok = interval_ok and all(is_number(end, infinite=True) for end in guidance_interval)
    require(interval_ok, "guidance_interval", guidance_interval, 'two numbers, such as "(0.3, 5)"')
    require(rho > 0, "rho", rho, "more than 0")
    if times and steps:
        raise ConfigError(f"steps={steps} and times={times} are both given: remove one.")
    o = o._replace(**{k: v for k, v in overrides.items() if v is not None})
    one_of("sampler", o.sampler, tuple(solvers.SOLVERS))
    solver = solvers.SOLVERS[o.sampler]
    options = (
        {"eta": float(o.eta)} if eta is not None or (o.eta and "eta" in solver.options) else {}
    )
    options |= {"order": order} if order is not None else {}
    options |= {"variance": o.variance} if o.sampler == "ddpm" else {}
    options |= {"churn": float(churn)} if churn is not None else {}
    options |= {"warmup": warmup} if warmup is not None else {}
    for name in options:
        if name not in solver.options:
            samplers = ", ".join(n for n, s in solvers.SOLVERS.items() if name in s.options)
            raise ConfigError(
                f"{name}={options[name]}: sampler {o.sampler} has no such option; these have: "
                f"{samplers}."
            )
    count = o.steps or path.steps
    t = grids.times(path, count, o.spacing, rho=rho, shift=grid_shift, given=times)
    table = solver.table(path, grids.grid(path, t, end), **options)
    low, high = guidance_interval
    g = Guidance(
        *(float(o.guidance), float(low), float(high), float(guidance_rescale)),
        *(float(guidance_parallel), float(guidance_radius), float(guidance_momentum)),
    )
    guiding.check(guidance_kind, g)
    if guidance_kind == "cfg++":  # its pair does not give back x_t, which other samplers also use
        one_of("sampler (with guidance_kind=cfg++)", o.sampler, PAIR_ALONE)
    require(0 <= threshold <= 100, "threshold", threshold, "a percentile, or 0")
    if threshold and guidance_kind == "cfg++":
        raise ConfigError(
            f"threshold={threshold:g}: with guidance_kind='cfg++' epsilon does not match x_0. "
            "Remove one."
        )
    guided = g.scale != 1 or guidance_kind == "cfg++" or bool(more_prompts)
    if negative_prompt and not guided:
        raise ConfigError(
            f"negative_prompt={negative_prompt!r} has no effect without guidance: give guidance=2, "
            "for example, or leave it out."
        )
    return {
        "table": table,
        "strength": Guidance(*map(np.float64, g)),
        "prompts": parsed_prompts(prompt, negative_prompt, more_prompts),
        "guided": guided,
        "kind": guidance_kind,
        "stochastic": table.stochastic,
        "threshold": float(threshold),
    }


def denoiser(
    model: Denoiser,
    params: dict,
    mutable: dict,
    known: Known,
    *,
    strength: Guidance,
    prompts: Prompts = NO_PROMPTS,
    guided: bool,
    kind: str,
    threshold: float,
) -> Denoise:
    """The model as solvers call it: with guidance, and x_0 within the data's range.

    The conditions are encoded once, before all steps.
    """
    variables, by_weights = (params["denoiser"], mutable["denoiser"]), "guide/denoiser" in params
    _guidable(model.options, guided, by_weights)
    if by_weights and any(part is not None for part in prompts):
        raise ConfigError(
            "negative_prompt, more_prompts: with --guide_ema or --guide_checkpoint both networks "
            "have the same text. Remove one."
        )
    told = model.tell(variables[0], known)
    if by_weights:
        worse = (params["guide/denoiser"], mutable["denoiser"])
        told_worse = model.tell(worse[0], known)
    elif guided:
        others = [model.tell(variables[0], other) for other in others_of(model, known, prompts)]
        every = jax.tree.map(lambda *parts: jnp.concatenate(parts), told, *others)

    def unguided(x: Array, at: Levels, memory: Any) -> tuple[Prediction, Any]:
        return model.predict(*variables, x, at, told), memory

    def both(x: Array, at: Levels) -> tuple[Prediction, Prediction]:
        if by_weights:
            return model.predict(*variables, x, at, told), model.predict(*worse, x, at, told_worse)
        count = 1 + len(others)
        all_at_once = model.predict(*variables, jnp.concatenate([x] * count), at, every)
        split = [[None] * count if y is None else jnp.split(y, count) for y in all_at_once]
        good, bad, *further = (Prediction(*parts) for parts in zip(*split, strict=True))
        return guiding.composed(good, bad, further, prompts.weights), bad

    denoise = guiding.guided(both, strength, kind) if guided else unguided
    if threshold:
        kind_of = model.spec.generated.kind
        require(model.clips, "threshold", threshold, f"0: the data are of kind {kind_of!r}")
        return guiding.thresholded(denoise, threshold)
    return guiding.clipped(denoise) if model.clips and kind != "cfg++" else denoise


def sample(
    model: Denoiser,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
    *,
    table: Table,
    strength: Guidance,
    prompts: Prompts = NO_PROMPTS,
    guided: bool,
    kind: str,
    stochastic: bool,
    threshold: float,
) -> Array:
    """Draws `num` samples, in the data's own format; see `plan` for the options.

    Each sample depends on its own key, and not on how many are drawn with it.
    """
    fields, setting = fields_of(model.options, model.spec), "diffusion.class_conditional=True"
    key_label = jax.random.fold_in(key, 2)
    known = Known(complete(model.spec, fields, num, condition, key_label, setting))
    denoise = denoiser(
        model,
        params,
        mutable,
        known,
        strength=strength,
        prompts=prompts,
        guided=guided,
        kind=kind,
        threshold=threshold,
    )
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(3 + jnp.arange(num))
    shape = shape_of(model.spec)
    memory = jnp.zeros((num, *shape)) if kind == "projected" else ()
    x = solve(denoise, table, keys, shape, stochastic=stochastic, memory=memory)
    return model.output(x)
