"""Denoising diffusion probabilistic models (Ho et al. 2020) on 8-bit images.

Linear and cosine noise; epsilon, x0 and v prediction; simple, min-SNR and variational weighting;
class conditioning with classifier-free guidance; the variational bound in bits per dimension.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from genjax.config import ConfigError, construct, one_of, read_options, require
from genjax.method import Aux, Batch, DataSpec, Method, Phase, Rules, Tree
from genjax.modalities.image import image_shape
from genjax.modalities.label import label_condition, num_classes, required_classes
from genjax.networks import unet
from genjax.nn.functional import Functional, functional
from genjax.nn.pixels import to_float, to_uint8
from genjax.sampling import diffusion
from genjax.sampling import diffusion_bound as bound
from genjax.sampling.conditions import Condition, labels
from genjax.sampling.diffusion import Prediction, Schedule

WEIGHTINGS = ("simple", "min_snr", "variational")


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


def options_from_config(section: ConfigDict, spec: DataSpec) -> Options:
    """Reads and checks the `diffusion` section.

    Raises:
      ConfigError: an unknown key or choice, a number out of range, or class conditioning on data
        without labels.
    """
    o = read_options(section, "diffusion", Options)
    T = o.num_timesteps
    one_of("diffusion.noise_schedule", o.noise_schedule, tuple(diffusion.NOISE_SCHEDULES))
    one_of("diffusion.prediction", o.prediction, diffusion.PREDICTIONS)
    one_of("diffusion.weighting", o.weighting, WEIGHTINGS)
    one_of("diffusion.variance", o.variance, diffusion.VARIANCES)
    require(T >= 2, "diffusion.num_timesteps", T, "at least 2")
    require(o.min_snr_gamma > 0, "diffusion.min_snr_gamma", o.min_snr_gamma, "more than 0")
    require(0 <= o.label_dropout < 1, "diffusion.label_dropout", o.label_dropout, "0 <= p < 1")
    K, choice = o.eval_timesteps, f"0 (all of them, exact) or between 2 and num_timesteps={T}"
    require(K == 0 or 2 <= K <= T, "diffusion.eval_timesteps", K, choice)
    required_classes(spec, "diffusion.class_conditional=True", o.class_conditional)
    _check_sampling(o)
    return o


def _check_sampling(o: Options) -> None:
    """Refuses options of sampling that the model cannot follow."""
    T = o.num_timesteps
    one_of("sampler", o.sampler, tuple(diffusion.SAMPLERS))
    require(isinstance(o.steps, int), "steps", o.steps, "a whole number")
    for name in ("eta", "guidance"):
        value = getattr(o, name)
        require(isinstance(value, int | float), name, value, "a number")
    require(0 <= o.steps <= T, "steps", o.steps, f"between 1 and num_timesteps={T}, or 0 for all")
    require(0 <= o.eta <= 1, "eta", o.eta, "between 0 (no noise) and 1")
    if o.guidance != 1 and not (o.class_conditional and o.label_dropout):
        raise ConfigError(
            f"guidance={o.guidance}: the model must have been trained with "
            "diffusion.class_conditional=True and diffusion.label_dropout > 0 to be guided. "
            "Use guidance=1."
        )


def loss_weights(
    weighting: str, prediction: str, schedule: Schedule, gamma: float
) -> Float[np.ndarray, "T"]:
    """Weight of the squared error of the network's own output, at each timestep.

    "simple" is 1 (Ho et al. 2020, eq. 14, for epsilon). "min_snr" weighs the error of x_0 by
    min(SNR, gamma) (Hang et al. 2023, Min-SNR-gamma), which is min(SNR, gamma) / SNR for epsilon
    and / (SNR + 1) for v.
    """
    ratio = diffusion.snr(schedule)
    if weighting == "simple":
        return np.ones_like(ratio)
    per_x0 = {"x0": 1.0, "epsilon": ratio, "v": ratio + 1.0}[prediction]
    return np.minimum(ratio, gamma) / per_x0


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """DDPM with the U-Net of `config.model` on the images of `spec`.

    Raises:
      ConfigError: the data are not square images, or `config.diffusion` asks for something that
        does not exist.
    """
    height, _, channels = image_shape(spec, "ddpm", square=True)
    options = options_from_config(config.diffusion, spec)

    def network(rngs):
        return construct(
            unet.UNet,
            config.model,
            "model",
            resolution=height,
            in_channels=channels,
            out_channels=channels,
            num_classes=num_classes(spec) if options.class_conditional else 0,
            dtype=jnp.dtype(config.precision),
            rngs=rngs,
        )

    return from_network(functional(network), options, spec, unet.RULES)


class Denoiser(NamedTuple):
    """What every function of the family needs to know, beside its arrays."""

    net: Functional
    options: Options
    spec: DataSpec
    schedule: Schedule

    def __call__(
        self, params: dict[str, Tree], mutable: dict[str, Tree], x, index, label, **training
    ) -> tuple[Float[Array, "B H W C"], dict[str, Tree]]:
        """The network's output at x_t, float32, and its new mutable state."""
        output, changed = self.net.apply(
            params["denoiser"],
            mutable["denoiser"],
            x,
            index.astype(jnp.float32),
            label,
            **training,
        )
        return output.astype(jnp.float32), {"denoiser": changed}

    def interpret(self, output, x, index) -> Prediction:
        """The (x0, epsilon) that an output at x_t implies."""
        return diffusion.to_prediction(self.options.prediction, self.schedule, output, x, index)


def from_network(net: Functional, options: Options, spec: DataSpec, rules: Rules) -> Method:
    """DDPM with any network `apply(params, mutable, x, t, label)` in place of the U-Net."""
    betas = diffusion.NOISE_SCHEDULES[options.noise_schedule](options.num_timesteps)
    denoiser = Denoiser(net, options, spec, diffusion.schedule_from_betas(betas))

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = net.init(key)
        return {"denoiser": params}, {"denoiser": mutable}

    return Method(
        init=init,
        phases=(Phase("denoiser", partial(loss, denoiser)),),
        evaluate=partial(evaluate, denoiser),
        sample=partial(sample, denoiser),
        rules=rules,
        conditions=label_condition(spec, options.class_conditional),
    )


def loss(
    denoiser: Denoiser, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The weighted denoising loss of a microbatch (Ho et al. 2020, eq. 14; `loss_weights`).

    With "variational" weighting it is an unbiased estimate of the bound less its constant L_T, in
    nats per dimension, x0_hat not being clipped.
    """
    options, schedule = denoiser.options, denoiser.schedule
    key_time, key_noise, key_label, key_net = (jax.random.fold_in(key, i) for i in range(4))
    x0 = to_float(batch[denoiser.spec.target])
    B, T = x0.shape[0], options.num_timesteps
    index = jnp.minimum((bound.stratified_uniform(key_time, B) * T).astype(jnp.int32), T - 1)
    noise = jax.random.normal(key_noise, x0.shape)
    x = diffusion.q_sample(schedule, x0, index, noise)
    known = None
    if options.class_conditional:
        hidden = jax.random.bernoulli(key_label, options.label_dropout, (B,))
        known = jnp.where(hidden, num_classes(denoiser.spec), batch["label"])
    output, changed = denoiser(params, mutable, x, index, known, key=key_net, train=True)
    prediction = denoiser.interpret(output, x, index)
    if options.weighting == "variational":
        losses = T * bound.term(schedule, options.variance, x0, prediction.x0, index)
    else:
        kind = options.prediction
        weights = loss_weights(options.weighting, kind, schedule, options.min_snr_gamma)
        target = diffusion.prediction_target(kind, schedule, x0, noise, index)
        losses = jnp.asarray(weights, jnp.float32)[index] * bound.per_example(
            jnp.square(output - target)
        )
    metrics = {"epsilon_mse": jnp.mean(jnp.square(prediction.epsilon - noise))}
    return losses.mean(), Aux(metrics, changed, float(B))


def evaluate(
    denoiser: Denoiser, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"]]:
    """The variational bound of each image, in bits per dimension (Ho et al. 2020, eq. 5).

    x0_hat is clipped to [-1, 1], as in the sampler; the noise is drawn once at each timestep.
    Beside the bound come its decoder term L_0 and its prior term L_T.
    """
    options, schedule = denoiser.options, denoiser.schedule
    x0 = to_float(batch[denoiser.spec.target])
    known = batch["label"] if options.class_conditional else None
    key_time, key_noise = (jax.random.fold_in(key, i) for i in range(2))
    index, weight = bound.draw_timesteps(
        schedule, options.variance, options.eval_timesteps, x0.shape[0], key_time
    )

    def term(count, index):
        noise = jax.random.normal(jax.random.fold_in(key_noise, count), x0.shape)
        x = diffusion.q_sample(schedule, x0, index, noise)
        output, _ = denoiser(params, mutable, x, index, known)
        x0_hat = jnp.clip(denoiser.interpret(output, x, index).x0, -1.0, 1.0)
        return count + 1, bound.term(schedule, options.variance, x0, x0_hat, index)

    _, terms = jax.lax.scan(term, 0, index)
    prior = bound.prior_term(schedule, x0)
    nats = {
        "bits_per_dim": prior + (weight * terms).sum(axis=0),
        "bits_per_dim_decoder": terms[0],
        "bits_per_dim_prior": prior,
    }
    return {name: value / np.log(2) for name, value in nats.items()}


def sample(
    denoiser: Denoiser,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
    *,
    sampler: str | None = None,
    steps: int | None = None,
    eta: float | None = None,
    guidance: float | None = None,
) -> UInt8[Array, "B H W C"]:
    """Draws `num` images; what is None comes from the config's `diffusion` section.

    Guidance w is epsilon(null) + w (epsilon(label) - epsilon(null)) (Ho & Salimans 2022, eq. 6,
    whose w is ours less 1), on the network's output, in which epsilon is affine.

    Args:
      denoiser: the model.
      params: its parameters.
      mutable: its mutable state.
      key: draws x_T and the noise of the steps.
      num: images to draw.
      condition: `label`; without it each class in turn.
      sampler: a name in `diffusion.SAMPLERS`.
      steps: between 1 and T, or 0 for all.
      eta: noise of the "ddim" sampler, between 0 and 1.
      guidance: w; 1 is none, and costs one network call a step instead of a doubled one.

    Raises:
      ConfigError: an option that does not exist or that this model cannot follow.
    """
    given = dict(sampler=sampler, steps=steps, eta=eta, guidance=guidance)
    options = denoiser.options._replace(**{k: v for k, v in given.items() if v is not None})
    _check_sampling(options)
    spec, w = denoiser.spec, float(options.guidance)
    setting, key_label = "diffusion.class_conditional=True", jax.random.fold_in(key, 2)
    known = labels(spec, options.class_conditional, num, condition, key_label, setting)

    def predict(x, index):
        if w == 1:
            output, _ = denoiser(params, mutable, x, index, known)
        else:
            null = jnp.full_like(known, num_classes(spec))
            twice = (jnp.concatenate(pair) for pair in ((x, x), (index, index), (known, null)))
            with_label, without = jnp.split(denoiser(params, mutable, *twice)[0], 2)
            output = without + w * (with_label - without)
        return denoiser.interpret(output, x, index)

    x = jax.random.normal(jax.random.fold_in(key, 0), (num, *spec.generated.shape))
    visited = diffusion.respace(denoiser.schedule, options.steps or None)
    own = {"ancestral": {"variance": options.variance}, "ddim": {"eta": options.eta}}
    solve = partial(diffusion.SAMPLERS[options.sampler], **own[options.sampler])
    return to_uint8(solve(predict, visited, x, jax.random.fold_in(key, 1)))
