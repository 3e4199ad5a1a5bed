"""Denoising diffusion probabilistic models (Ho et al. 2020) on 8-bit images.

Linear and cosine noise; epsilon, x0 and v prediction; simple, min-SNR and variational weighting;
class conditioning with classifier-free guidance; the variational bound in bits per dimension.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.method import Aux, Batch, DataSpec, Method, Phase, Rules, Tree
from genjax.networks import unet
from genjax.nn.functional import Functional, functional
from genjax.sampling import diffusion
from genjax.sampling.diffusion import Schedule

WEIGHTINGS = ("simple", "min_snr", "variational")
LEVELS = 256  # of an 8-bit image


class Options(NamedTuple):
    """The `diffusion` section of a config, and its defaults.

    Attributes:
      num_timesteps: T, steps of the process.
      noise_schedule: "cosine" or "linear".
      prediction: what the network outputs: "epsilon", "x0" or "v".
      weighting: of the loss over timesteps: "simple", "min_snr" or "variational".
      min_snr_gamma: where "min_snr" cuts the signal-to-noise ratio.
      variance: of the reverse step: "fixed_small" or "fixed_large".
      class_conditional: whether the network is told the label.
      label_dropout: share of training examples whose label is hidden, for guidance.
      eval_timesteps: network calls an example in the estimate of the bound, the first of them
        for the decoder term; 0 visits all T.
      sampler: default sampler.
      steps: default number of sampling steps; 0 takes all T.
      eta: default noise of the "ddim" sampler.
      guidance: default scale of classifier-free guidance; 1 is none.
    """

    num_timesteps: int = 1000
    noise_schedule: str = "cosine"
    prediction: str = "epsilon"
    weighting: str = "simple"
    min_snr_gamma: float = 5.0
    variance: str = "fixed_small"
    class_conditional: bool = False
    label_dropout: float = 0.1
    eval_timesteps: int = 32
    sampler: str = "ancestral"
    steps: int = 0
    eta: float = 0.0
    guidance: float = 1.0


def _one_of(name: str, value: str, choices) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name}={value!r}: expected one of {', '.join(choices)}.{hint}")


def _check(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={value!r}: expected {expected}.")


def options_from_config(section: ConfigDict, spec: DataSpec) -> Options:
    """Reads and checks the `diffusion` section.

    Raises:
      ConfigError: an unknown key or choice, a number out of range, or class conditioning on data
        without labels.
    """
    values = section.to_dict()
    for name in values:
        _one_of("config.diffusion key", name, Options._fields)
    o = Options(**values)
    _one_of("diffusion.noise_schedule", o.noise_schedule, tuple(diffusion.NOISE_SCHEDULES))
    _one_of("diffusion.prediction", o.prediction, diffusion.PREDICTIONS)
    _one_of("diffusion.weighting", o.weighting, WEIGHTINGS)
    _one_of("diffusion.variance", o.variance, diffusion.VARIANCES)
    T = o.num_timesteps
    _check(T >= 2, "diffusion.num_timesteps", T, "at least 2")
    _check(o.min_snr_gamma > 0, "diffusion.min_snr_gamma", o.min_snr_gamma, "more than 0")
    _check(0 <= o.label_dropout < 1, "diffusion.label_dropout", o.label_dropout, "0 <= p < 1")
    _check(
        o.eval_timesteps == 0 or 2 <= o.eval_timesteps <= T,
        "diffusion.eval_timesteps",
        o.eval_timesteps,
        f"0 (all of them, exact) or between 2 and num_timesteps={T}",
    )
    if o.class_conditional and not spec.num_classes:
        raise ConfigError(
            f"diffusion.class_conditional=True, but {spec.name} has no labels. Set it to False or "
            "choose a data set with labels."
        )
    _check_sampling(o, o.sampler, o.steps, o.eta, o.guidance)
    return o


def _check_sampling(o: Options, sampler: str, steps: int, eta: float, guidance: float) -> None:
    """Refuses options of sampling that this model cannot follow."""
    T = o.num_timesteps
    _one_of("sampler", sampler, tuple(diffusion.SAMPLERS))
    _check(0 <= steps <= T, "steps", steps, f"between 1 and num_timesteps={T}, or 0 for all")
    _check(0 <= eta <= 1, "eta", eta, "between 0 (no noise) and 1")
    if guidance != 1 and not (o.class_conditional and o.label_dropout):
        raise ConfigError(
            f"guidance={guidance}: the model must have been trained with "
            "diffusion.class_conditional=True and diffusion.label_dropout > 0 to be guided. "
            "Use guidance=1."
        )


def to_float(image: UInt8[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Maps 0 ... 255 onto [-1, 1] (Ho et al. 2020, section 3.3)."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: Float[Array, "B H W C"]) -> UInt8[Array, "B H W C"]:
    """Inverts `to_float`: rounds to the nearest of the 256 levels, clipping what lies outside."""
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def loss_weights(
    weighting: str, prediction: str, schedule: Schedule, gamma: float
) -> Float[np.ndarray, "T"]:
    """Weight of the squared error of the network's own output, at each timestep.

    "simple" is 1 (Ho et al. 2020, eq. 14, for epsilon). "min_snr" weighs the error of x_0 by
    min(SNR, gamma) (Hang et al. 2023, section 3.4), which is min(SNR, gamma) / SNR for epsilon
    and / (SNR + 1) for v.
    """
    ratio = diffusion.snr(schedule)
    if weighting == "simple":
        return np.ones_like(ratio)
    per_x0 = {"x0": 1.0, "epsilon": ratio, "v": ratio + 1.0}[prediction]
    return np.minimum(ratio, gamma) / per_x0


def stratified_uniform(key: Array, count: int) -> Float[Array, "B"]:
    """`count` uniform numbers, one in each interval of length 1 / count up to a common shift.

    Each is uniform on [0, 1); together they cover it evenly, which lowers the variance of a
    batch's mean over timesteps (Kingma et al. 2021, appendix I.1).
    """
    return jnp.mod(jax.random.uniform(key) + jnp.arange(count) / count, 1.0)


def kl_tables(
    schedule: Schedule, variance: str
) -> tuple[Float[np.ndarray, "T"], Float[np.ndarray, "T"]]:
    """(a, b) with KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) = a_t (x_0 - x0_hat)^2 + b_t.

    In nats, for one dimension, for t >= 1 (Ho et al. 2020, eq. 5 and 8). Both are 0 at index 0,
    where the bound has the decoder instead.
    """
    model = diffusion.model_variance(schedule, variance).astype(np.float64)[1:]
    true = schedule.posterior_variance.astype(np.float64)[1:]
    slope = schedule.posterior_x0.astype(np.float64)[1:] ** 2 / (2 * model)
    constant = 0.5 * (np.log(model / true) + true / model - 1)
    return np.concatenate([[0], slope]), np.concatenate([[0], constant])


def decoder_nll(
    x0: Float[Array, "B ..."], mean: Float[Array, "B ..."], deviation: float
) -> Float[Array, "B ..."]:
    """-log of a Gaussian's mass on the bin of an 8-bit value (Ho et al. 2020, eq. 13), in nats.

    Args:
      x0: values k / 127.5 - 1; the bins of the first and last level reach to infinity.
      mean: of the Gaussian.
      deviation: its standard deviation.
    """
    half = 1.0 / (LEVELS - 1)
    upper, lower = (x0 + half - mean) / deviation, (x0 - half - mean) / deviation
    # The mass between two points is the same mirrored: take both in the lower tail, where the
    # logarithm of the distribution function keeps its precision.
    flip = x0 < mean
    upper, lower = jnp.where(flip, upper, -lower), jnp.where(flip, lower, -upper)
    top = jax.scipy.special.log_ndtr(upper)
    gap = jnp.maximum(top - jax.scipy.special.log_ndtr(lower), 1e-7)
    inside = top + jnp.log(-jnp.expm1(-gap))
    first = jax.scipy.special.log_ndtr((x0 + half - mean) / deviation)
    last = jax.scipy.special.log_ndtr(-(x0 - half - mean) / deviation)
    edge = 1.0 - half
    return -jnp.where(x0 < -edge, first, jnp.where(x0 > edge, last, inside))


def _mean(x: Float[Array, "B ..."]) -> Float[Array, "B"]:
    return x.reshape(x.shape[0], -1).mean(axis=1)


def bound_term(
    schedule: Schedule,
    variance: str,
    x0: Float[Array, "B ..."],
    x0_hat: Float[Array, "B ..."],
    index: Int[Array, "B"],
) -> Float[Array, "B"]:
    """The term of the variational bound at each index, in nats per dimension.

    At index t >= 1 the KL between the two Gaussians over x_{t-1}, at index 0 the decoder's
    -log p(x_0 | x_1) (Ho et al. 2020, eq. 5, 8 and 13).
    """
    slope, constant = (jnp.asarray(a, jnp.float32)[index] for a in kl_tables(schedule, variance))
    kl = slope * _mean(jnp.square(x0 - x0_hat)) + constant
    deviation = float(np.sqrt(diffusion.model_variance(schedule, variance)[0]))
    return jnp.where(index == 0, _mean(decoder_nll(x0, x0_hat, deviation)), kl)


def prior_term(schedule: Schedule, x0: Float[Array, "B ..."]) -> Float[Array, "B"]:
    """L_T: KL(q(x_T | x_0) || N(0, 1)) in nats per dimension (Ho et al. 2020, eq. 5)."""
    alpha_bar = float(np.exp(schedule.log_alpha_bar[-1]))
    constant = float(-alpha_bar - np.log1p(-alpha_bar))
    return 0.5 * (alpha_bar * _mean(jnp.square(x0)) + constant)


def bound_proposal(schedule: Schedule, variance: str) -> Float[np.ndarray, "T"]:
    """Probabilities with which to draw the timesteps of the bound; 0 at index 0.

    Nine tenths go by what each term would be for Gaussian data of standard deviation 0.2, whose
    best x0_hat errs by 1 / (25 + SNR); a tenth is uniform, which bounds the importance weights.
    """
    slope, constant = kl_tables(schedule, variance)
    guess = slope / (25.0 + diffusion.snr(schedule)) + constant
    uniform = np.full(len(slope) - 1, 1 / (len(slope) - 1))
    return np.concatenate([[0], 0.9 * guess[1:] / guess[1:].sum() + 0.1 * uniform])


def draw_bound_timesteps(
    schedule: Schedule, variance: str, count: int, batch: int, key: Array
) -> tuple[Int[Array, "K B"], Float[Array, "K B"]]:
    """Timesteps and weights with which sum_k weight_k L_{t_k} estimates sum_t L_t without bias.

    The first of the `count` timesteps is 0, with weight 1. The others are drawn from
    `bound_proposal`, stratified within an example and across the batch. `count` 0 gives every
    timestep once, which is exact.
    """
    T = len(schedule.timesteps)
    if count == 0:
        index = jnp.broadcast_to(jnp.arange(T)[:, None], (T, batch))
        return index, jnp.ones(index.shape)
    draws = count - 1
    proposal = bound_proposal(schedule, variance)
    shift = stratified_uniform(key, batch)
    u = (jnp.arange(draws)[:, None] + shift[None, :]) / draws
    cumulative = jnp.asarray(np.cumsum(proposal), jnp.float32)
    index = jnp.clip(jnp.searchsorted(cumulative, u, side="right"), 1, T - 1)
    weight = 1.0 / (draws * jnp.asarray(proposal, jnp.float32).at[0].set(1.0)[index])
    first = jnp.zeros((1, batch), index.dtype)
    return jnp.concatenate([first, index]), jnp.concatenate([jnp.ones((1, batch)), weight])


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """DDPM with the U-Net of `config.model` on the images of `spec`.

    Raises:
      ConfigError: the data are not square images, or `config.diffusion` asks for something that
        does not exist.
    """
    if spec.modality != "image":
        raise ConfigError(f"method ddpm needs images; {spec.name} holds {spec.modality}.")
    height, width, channels = spec.features["image"].shape
    if height != width:
        raise ConfigError(
            f"method ddpm needs square images; {spec.name} has {height} x {width}. "
            "Set dataset.image_size."
        )
    options = options_from_config(config.diffusion, spec)

    def network(rngs):
        return unet.UNet.from_config(
            config.model,
            resolution=height,
            in_channels=channels,
            out_channels=channels,
            num_classes=spec.num_classes if options.class_conditional else 0,
            dtype=jnp.dtype(config.precision),
            rngs=rngs,
        )

    return from_network(functional(network), options, spec, unet.RULES)


def from_network(net: Functional, options: Options, spec: DataSpec, rules: Rules) -> Method:
    """DDPM with any network `apply(params, mutable, x, t, label)` in place of the U-Net."""
    betas = diffusion.NOISE_SCHEDULES[options.noise_schedule](options.num_timesteps)
    schedule = diffusion.schedule_from_betas(betas)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = net.init(key)
        return {"denoiser": params}, {"denoiser": mutable}

    def loss(params, mutable, batch, key, step):
        return _loss(net, options, spec, schedule, params, mutable, batch, key)

    def evaluate(params, mutable, batch, key):
        return _evaluate(net, options, schedule, params, mutable, batch, key)

    def sample(params, mutable, key, num, condition=None, **choices):
        return _sample(net, options, spec, schedule, params, mutable, key, num, condition, choices)

    return Method(init, (Phase("denoiser", loss),), evaluate, sample, rules)


def _loss(net, options, spec, schedule, params, mutable, batch, key):
    """The weighted denoising loss of one microbatch; see `Options.weighting`.

    "variational" is an unbiased estimate of the bound without its constant L_T, in nats per
    dimension, with x0 not clipped.
    """
    key_time, key_noise, key_label, key_net = (jax.random.fold_in(key, i) for i in range(4))
    x0 = to_float(batch["image"])
    B, T = x0.shape[0], options.num_timesteps
    index = jnp.minimum((stratified_uniform(key_time, B) * T).astype(jnp.int32), T - 1)
    noise = jax.random.normal(key_noise, x0.shape)
    x = diffusion.q_sample(schedule, x0, index, noise)
    label = None
    if options.class_conditional:
        hidden = jax.random.bernoulli(key_label, options.label_dropout, (B,))
        label = jnp.where(hidden, spec.num_classes, batch["label"])
    output, changed = net.apply(
        params["denoiser"],
        mutable["denoiser"],
        x,
        index.astype(jnp.float32),
        label,
        key=key_net,
        train=True,
    )
    output = output.astype(jnp.float32)
    prediction = diffusion.to_prediction(options.prediction, schedule, output, x, index)
    if options.weighting == "variational":
        losses = T * bound_term(schedule, options.variance, x0, prediction.x0, index)
    else:
        weights = loss_weights(
            options.weighting, options.prediction, schedule, options.min_snr_gamma
        )
        target = diffusion.prediction_target(options.prediction, schedule, x0, noise, index)
        losses = jnp.asarray(weights, jnp.float32)[index] * _mean(jnp.square(output - target))
    metrics = {"epsilon_mse": jnp.mean(jnp.square(prediction.epsilon - noise))}
    return losses.mean(), Aux(metrics, {"denoiser": changed}, float(B))


def _evaluate(net, options, schedule, params, mutable, batch, key):
    """The variational bound of each image, in bits per dimension (Ho et al. 2020, eq. 5).

    x0_hat is clipped to [-1, 1], as in the sampler. The noise is drawn once at each timestep.
    """
    x0 = to_float(batch["image"])
    label = batch["label"] if options.class_conditional else None
    key_time, key_noise = (jax.random.fold_in(key, i) for i in range(2))
    index, weight = draw_bound_timesteps(
        schedule, options.variance, options.eval_timesteps, x0.shape[0], key_time
    )

    def term(count, index):
        noise = jax.random.normal(jax.random.fold_in(key_noise, count), x0.shape)
        x = diffusion.q_sample(schedule, x0, index, noise)
        time = index.astype(jnp.float32)
        output, _ = net.apply(params["denoiser"], mutable["denoiser"], x, time, label)
        output = output.astype(jnp.float32)
        prediction = diffusion.to_prediction(options.prediction, schedule, output, x, index)
        x0_hat = jnp.clip(prediction.x0, -1.0, 1.0)
        return count + 1, bound_term(schedule, options.variance, x0, x0_hat, index)

    _, terms = jax.lax.scan(term, 0, index)
    prior = prior_term(schedule, x0)
    nats = {
        "bits_per_dim": prior + (weight * terms).sum(axis=0),
        "bits_per_dim_decoder": terms[0],
        "bits_per_dim_prior": prior,
    }
    return {name: value / np.log(2) for name, value in nats.items()}


def _labels(options: Options, spec: DataSpec, num: int, condition) -> Int[Array, "B"] | None:
    """The labels to sample: those given, or each class in turn."""
    if not options.class_conditional:
        if condition is not None:
            raise ConfigError(
                "labels were given, but the model is not class-conditional: give none, or train "
                "with diffusion.class_conditional=True."
            )
        return None
    if condition is None:
        return jnp.arange(num) % spec.num_classes
    label = jnp.asarray(condition, jnp.int32)
    if label.shape != (num,):
        raise ValueError(f"condition: expected {num} labels, got an array of {label.shape}.")
    return label


def _sample(net, options, spec, schedule, params, mutable, key, num, condition, choices):
    """Draws images uint8 [num, H, W, C]; `choices`: sampler, steps, eta, guidance.

    Guidance w is epsilon(null) + w (epsilon(label) - epsilon(null)) (Ho & Salimans 2022, eq. 6,
    whose w is ours less 1), on the network's output, in which epsilon is affine.
    """
    allowed = ("sampler", "steps", "eta", "guidance")
    for name in choices:
        _one_of("sampling option", name, allowed)
    given = {name: value for name, value in choices.items() if value is not None}
    sampler, steps, eta, w = (given.get(name, getattr(options, name)) for name in allowed)
    _check_sampling(options, sampler, steps, eta, w)
    label = _labels(options, spec, num, condition)

    def apply(x, time, label):
        out, _ = net.apply(params["denoiser"], mutable["denoiser"], x, time, label)
        return out.astype(jnp.float32)

    def predict(x, timesteps):
        time = timesteps.astype(jnp.float32)
        if w == 1:
            output = apply(x, time, label)
        else:
            null = jnp.full_like(label, spec.num_classes)
            both = apply(*(jnp.concatenate(p) for p in ((x, x), (time, time), (label, null))))
            with_label, without = jnp.split(both, 2)
            output = without + w * (with_label - without)
        return diffusion.to_prediction(options.prediction, schedule, output, x, timesteps)

    shape = (num, *spec.features["image"].shape)
    x = jax.random.normal(jax.random.fold_in(key, 0), shape)
    visited = diffusion.respace(schedule, steps or None)
    own = {"ancestral": {"variance": options.variance}, "ddim": {"eta": eta}}[sampler]
    solve = diffusion.SAMPLERS[sampler]
    return to_uint8(solve(predict, visited, x, jax.random.fold_in(key, 1), **own))
