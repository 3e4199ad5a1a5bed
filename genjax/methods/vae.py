"""Variational autoencoders (Kingma & Welling 2014) with a Gaussian code, on 8-bit images or floats.

Bernoulli, Gaussian and discretised logistic decoders; beta weighting, KL warm-up and free bits; the
importance-weighted bound and its doubly reparameterised gradient; labels; the likelihood of test
examples by importance sampling. Everything is in nats per example, summed over dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range, Weight, Width, one_of
from genjax.config import construct, read_options
from genjax.durations import steps_within
from genjax.method import Aux, Batch, Codec, DataSpec, Method, Phase, Rules, Tree, find_module
from genjax.modalities.image import image_shape
from genjax.modalities.label import class_names, label_condition, num_classes, required_classes
from genjax.nn import likelihoods
from genjax.nn.functional import Functional, functional
from genjax.nn.pixels import binarised, nearness, to_float, to_uint8
from genjax.parallel.rules import replicate
from genjax.sampling import latents
from genjax.sampling.conditions import Condition, labels

BOUNDS = ("elbo", "iwae", "dreg")
LIKELIHOODS = ("bernoulli", "gaussian", "logistic")
# Scales from encoder and decoder are limited to exp(+-LIMIT).
LIMIT = 10.0
Samples = Annotated[int, Range(1, 100_000)]


class Options(NamedTuple):
    """The `vae` section of a config, and its defaults.

    Attributes:
      latent_dim: length of z.
      likelihood: p(x | z): "bernoulli", for pixels redrawn each time as 0 or 1, with their
        brightness as the probability (Burda et al. 2016, section 5); "gaussian", with one learned
        scale for all dimensions (Rybkin et al. 2021), discretised to 8 bits if the data are 8-bit;
        "logistic", discretised to 8 bits, with a scale for each dimension (Kingma et al. 2016,
        appendix C.1).
      bound: the training objective: "elbo", with its KL in closed form (Kingma & Welling 2014,
        eq. 10); "iwae" (Burda et al. 2016, eq. 8); "dreg", the same with the doubly reparameterised
        gradient (Tucker et al. 2019, eq. 8).
      samples: k, samples of z for each example in training.
      beta: weight of the KL (Higgins et al. 2017, eq. 4); with the other bounds, weight of each
        sample's log q(z | x) - log p(z), whose mean is the KL.
      kl_warmup: duration over which that weight grows from 0, such as "10_epochs"; empty: none.
      free_bits: nats of KL per dimension of z that cost nothing (Kingma et al. 2016, eq. 15); with
        "elbo" only.
      class_conditional: whether both networks are conditioned on the label (Sohn et al. 2015).
      eval_samples: k of the estimate of log p(x) in evaluations; 1 omits the estimate.
      eval_chunk: how many of these samples are decoded at once; must divide `eval_samples`.
    """

    latent_dim: Width = 50
    likelihood: str = "bernoulli"
    bound: str = "elbo"
    samples: Samples = 1
    beta: Weight = 1.0
    kl_warmup: str = ""
    free_bits: Weight = 0.0
    class_conditional: bool = False
    eval_samples: Samples = 1
    eval_chunk: Samples = 50


def options_from_config(section: ConfigDict, spec: DataSpec) -> Options:
    """Reads and checks the `vae` section.

    Raises:
      ConfigError: an unknown key or choice, a number out of range, settings that cannot be
        combined, labels that the data do not have, or a likelihood for other data.
    """
    o = read_options(section, "vae", Options)
    one_of("vae.likelihood", o.likelihood, LIKELIHOODS)
    one_of("vae.bound", o.bound, BOUNDS)
    if o.bound != "elbo" and o.free_bits:
        raise ConfigError(
            f"vae.bound={o.bound!r} has no KL per dimension: set free_bits=0, or use bound='elbo'."
        )
    if o.eval_samples % min(o.eval_chunk, o.eval_samples):
        raise ConfigError(
            f"vae.eval_samples={o.eval_samples}: expected a multiple of "
            f"vae.eval_chunk={o.eval_chunk}."
        )
    required_classes(spec, "vae.class_conditional=True", o.class_conditional)
    if o.likelihood != "gaussian" and spec.generated.dtype != jnp.uint8:
        raise ConfigError(
            f"vae.likelihood={o.likelihood!r} needs 8-bit images, but these are "
            f"{spec.generated.dtype}: set dataset.dequantize=False."
        )
    return o


class Autoencoder(NamedTuple):
    """The networks and the settings that every function of the family needs."""

    encoder: Functional  # (x, label) -> (mean, log scale) of q(z | x)
    decoder: Functional  # (z, label) -> parameters of p(x | z)
    options: Options
    spec: DataSpec
    warmup_steps: int = 0

    @property
    def discrete(self) -> bool:
        """Whether the data are 8-bit images."""
        return self.spec.generated.dtype == jnp.uint8

    def data(self, batch: Batch, key: Array) -> tuple[Float[Array, "B *shape"], Array | None]:
        """x as the likelihood needs it, and the labels if the networks use them."""
        x, label = (
            batch[self.spec.target],
            batch["label"] if self.options.class_conditional else None,
        )
        if self.options.likelihood == "bernoulli":
            # The barrier ensures one draw: without it XLA draws again in every loop that reads x.
            return jax.lax.optimization_barrier(binarised(key, x)), label
        return to_float(x) if self.discrete else x, label

    def posterior(
        self, params: Tree, mutable: Tree, x, label, **training
    ) -> tuple[Float[Array, "B Z"], Float[Array, "B Z"], Tree]:
        """Mean and log scale of q(z | x), and the encoder's new mutable state."""
        (mean, log_scale), changed = self.encoder.apply(
            params["encoder"], mutable["encoder"], x, label, **training
        )
        return mean, likelihoods.bounded(log_scale, LIMIT), changed

    def decode(
        self, params: Tree, mutable: Tree, z: Float[Array, "B S Z"], label, **training
    ) -> tuple[Float[Array, "B S *parameters"], Tree]:
        """The parameters of p(x | z) for each z, and the decoder's new mutable state.

        The example axis comes before the sample axis, so a batch split over devices stays in place.
        """
        B, S, Z = z.shape
        if label is not None:
            label = jnp.repeat(label, S)
        out, changed = self.decoder.apply(
            params["decoder"], mutable["decoder"], z.reshape(-1, Z), label, **training
        )
        return out.reshape(B, S, *out.shape[1:]), changed

    def log_likelihood(
        self, params: Tree, out: Float[Array, "B S *parameters"], x: Float[Array, "B *shape"]
    ) -> Float[Array, "B S"]:
        """log p(x | z), summed over dimensions, for the decoder's output."""

        def flat(a: Array) -> Float[Array, "B S D"]:  # loops over W and C alone are too short
            return a.reshape(*a.shape[:2], -1)

        x = flat(x[:, None])
        if self.options.likelihood == "bernoulli":
            per_dimension = likelihoods.bernoulli(x, flat(out))
        elif self.options.likelihood == "gaussian":
            log_scale = likelihoods.bounded(params["log_scale"], LIMIT)
            density = likelihoods.gaussian
            if self.discrete:
                density = partial(likelihoods.discretised, "gaussian")
            per_dimension = density(x, flat(out), log_scale)
        else:
            mean, log_scale = map(flat, jnp.split(out, 2, axis=-1))
            log_scale = likelihoods.bounded(log_scale, LIMIT)
            per_dimension = likelihoods.discretised_logistic(x, mean, log_scale)
        return per_dimension.sum(-1)

    def centre(self, params: Tree, mutable: Tree, z: Float[Array, "N Z"], label) -> Array:
        """The mean of p(x | z), or the location of a logistic one, in the data's own format."""
        out = self.decode(params, mutable, z[:, None], label)[0][:, 0]
        if self.options.likelihood == "bernoulli":
            return jnp.round(255 * jax.nn.sigmoid(out)).astype(jnp.uint8)
        if self.options.likelihood == "logistic":
            out = jnp.split(out, 2, axis=-1)[0]
        return to_uint8(out) if self.discrete else out


def _draw(key: Array, count: int, mean: Array, log_scale: Array) -> Float[Array, "B S Z"]:
    B, Z = mean.shape
    noise = jax.random.normal(key, (B, count, Z))
    return mean[:, None] + jnp.exp(log_scale)[:, None] * noise


def _log_ratio(z: Float[Array, "B S Z"], mean: Array, log_scale: Array) -> Float[Array, "B S"]:
    """log p(z) - log q(z | x)."""
    prior = likelihoods.gaussian(z, jnp.zeros(()), jnp.zeros(()))
    return (prior - likelihoods.gaussian(z, mean[:, None], log_scale[:, None])).sum(-1)


def importance_bound(log_weights: Float[Array, "B S"]) -> Float[Array, "B"]:
    """log 1/k sum_i w_i (Burda et al. 2016, eq. 8)."""
    return logsumexp(log_weights, axis=1) - math.log(log_weights.shape[1])


def doubly_reparameterised_bound(
    log_weights: Callable[..., tuple[Float[Array, "B S"], Tree]],
    params: Tree,
    z: Float[Array, "B S Z"],
    mean: Float[Array, "B Z"],
    log_scale: Float[Array, "B Z"],
    share: Float[Array, ""],
) -> tuple[Float[Array, "B"], Tree]:
    """`importance_bound` with the gradient of Tucker et al. 2019, eq. 8.

    With normalised weights w~, the decoder's gradient is sum w~ d log w / d theta, and the
    encoder's is sum w~^2 d log w / dz dz / dphi: the density of q is a constant with respect to
    phi. If log q has the factor -`share` in log w, the encoder's w~^2 becomes
    share w~^2 + (1 - share) w~: equation 7 holds for the share, and the rest has no such term.

    Args:
      log_weights: (params, z, mean, log_scale) -> (log w, other results), where log w[b, i] is a
        function of z[b, i].
      params: parameters for the decoder's gradient.
      z: the samples, as functions of mean and log_scale.
      mean: mean of q.
      log_scale: log scale of q.
      share: minus the factor of log q in log w.

    Returns:
      The bound, and the other results of `log_weights`, which have no gradient.
    """

    @jax.custom_vjp
    def bound(params, z, mean, log_scale, share):
        log_w, other = log_weights(params, z, mean, log_scale)
        return importance_bound(log_w), other

    def forward(params, z, mean, log_scale, share):
        log_w, back, other = jax.vjp(
            lambda p, z: log_weights(p, z, mean, log_scale), params, z, has_aux=True
        )
        return (importance_bound(log_w), other), (jax.nn.softmax(log_w, axis=1), back, mean, share)

    def backward(residual: Any, cotangents: tuple[Float[Array, "B"], Tree]):
        weights, back, mean, share = residual
        slope, slope_z = back(weights * cotangents[0][:, None])
        slope_z *= (share * weights + 1 - share)[..., None]
        constant = jnp.zeros_like(mean)
        return slope, slope_z, constant, constant, jnp.zeros_like(share)

    bound.defvjp(forward, backward)
    return bound(params, z, mean, log_scale, share)


def loss(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """Minus the bound that the options name, in nats per example."""
    o, params, mutable = model.options, params["vae"], mutable["vae"]
    key_x, key_z, key_net = (jax.random.fold_in(key, i) for i in range(3))
    x, label = model.data(batch, key_x)
    training = {"key": key_net, "train": True}
    mean, log_scale, encoder = model.posterior(params, mutable, x, label, **training)
    z = _draw(key_z, o.samples, mean, log_scale)

    def likelihood(params: Tree, z: Array) -> tuple[Float[Array, "B S"], Tree]:
        out, changed = model.decode(params, mutable, z, label, **training)
        return model.log_likelihood(params, out, x), changed

    kl, weight = likelihoods.gaussian_kl(mean, log_scale), jnp.float32(o.beta)
    if model.warmup_steps:
        weight *= jnp.minimum(step / model.warmup_steps, 1.0)
    metrics = {"kl": kl.sum(-1).mean(), "kl_weight": weight}

    def log_weights(params: Tree, z: Array, mean: Array, log_scale: Array) -> tuple[Array, Tree]:
        log_p, changed = likelihood(params, z)
        ratio = _log_ratio(z, mean, log_scale)
        return log_p + weight * ratio, (log_p, ratio, changed)

    if o.bound == "dreg":
        bound, (reconstruction, ratio, decoder) = doubly_reparameterised_bound(
            log_weights, params, z, mean, log_scale, weight
        )
        value = -bound.mean()
    elif o.bound == "iwae":
        log_w, (reconstruction, ratio, decoder) = log_weights(params, z, mean, log_scale)
        value = -importance_bound(log_w).mean()
    else:
        reconstruction, decoder = likelihood(params, z)
        charged = jnp.maximum(kl.mean(0), o.free_bits).sum()
        value = weight * charged - reconstruction.mean()
    metrics["reconstruction"] = reconstruction.mean()
    metrics["elbo"] = metrics["reconstruction"] - metrics["kl"]
    if o.bound != "elbo":
        metrics["bound"] = importance_bound(reconstruction + ratio).mean()
    changed = {"vae": {"encoder": encoder, "decoder": decoder}}
    return value, Aux(metrics, changed, float(len(x)))


def evaluate(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"]]:
    """ELBO, its parts, and log p(x) by importance sampling, in nats per example.

    log p(x) uses `eval_samples` samples of z, decoded `eval_chunk` at a time (Burda et al. 2016,
    section 5). For 8-bit images there are also minus log p(x), or minus the ELBO if `eval_samples`
    is 1, in bits per dimension, and `nearness` of the reconstruction from the mean of q(z | x). The
    bits are `bits_per_dim` of the 8-bit image, but `binary_bits_per_dim` with "bernoulli", whose
    pixels are 0 or 1: the two are not comparable.
    """
    o, params, mutable = model.options, params["vae"], mutable["vae"]
    key_x, key_z = (jax.random.fold_in(key, i) for i in range(2))
    x, label = model.data(batch, key_x)
    mean, log_scale, _ = model.posterior(params, mutable, x, label)
    chunk = min(o.eval_chunk, o.eval_samples)

    def add_chunk(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        total, weight = carry
        z = _draw(jax.random.fold_in(key_z, index), chunk, mean, log_scale)
        log_p = model.log_likelihood(params, model.decode(params, mutable, z, label)[0], x)
        chunk_weight = logsumexp(log_p + _log_ratio(z, mean, log_scale), axis=1)
        return (total + log_p.sum(1), jnp.logaddexp(weight, chunk_weight)), None

    start = (jnp.zeros(len(x)), jnp.full(len(x), -jnp.inf))
    (total, weight), _ = jax.lax.scan(add_chunk, start, jnp.arange(o.eval_samples // chunk))
    reconstruction = total / o.eval_samples
    kl = likelihoods.gaussian_kl(mean, log_scale).sum(-1)
    metrics = {"elbo": reconstruction - kl, "kl": kl, "reconstruction": reconstruction}
    nats = metrics["elbo"]
    if o.eval_samples > 1:
        nats = metrics["log_likelihood"] = weight - math.log(o.eval_samples)
    if model.discrete:
        name = "binary_bits_per_dim" if o.likelihood == "bernoulli" else "bits_per_dim"
        metrics[name] = -nats / (math.log(2) * x[0].size)
        centre = model.centre(params, mutable, mean, label)
        image = to_float(batch[model.spec.target])
        metrics |= nearness(to_float(centre), image)
    return metrics


def sample(
    model: Autoencoder,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
) -> Array:
    """Draws `num` codes from the prior and returns the centres of p(x | z) in the data's format.

    Args:
      model: the networks.
      params: their parameters.
      mutable: their mutable state.
      key: draws z.
      num: samples to draw.
      condition: `label`; without it, each class in turn.

    Raises:
      ConfigError: labels were given, and the model is unconditional.
    """
    conditional, key_label = model.options.class_conditional, jax.random.fold_in(key, 1)
    classes = labels(
        model.spec, conditional, num, condition, key_label, "vae.class_conditional=True"
    )
    z = jax.random.normal(jax.random.fold_in(key, 0), (num, model.options.latent_dim))
    return model.centre(params["vae"], mutable["vae"], z, classes)


def encode(model: Autoencoder, params: dict, mutable: dict, batch: Batch) -> Float[Array, "B Z"]:
    """The means of q(z | x). Bernoulli pixels are drawn as in training, always by the same key."""
    x, _ = model.data(batch, jax.random.key(0))
    return model.posterior(params["vae"], mutable["vae"], x, None)[0]


def decode(model: Autoencoder, params: dict, mutable: dict, z: Float[Array, "B Z"]) -> Array:
    """The centre of p(x | z), as the data are."""
    return model.centre(params["vae"], mutable["vae"], z, None)


def pictures(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Array]:
    """Reconstructions, interpolations, traversals and a map of the code: see `sampling.latents`."""
    params, mutable = params["vae"], mutable["vae"]
    x, label = model.data(batch, jax.random.fold_in(key, 0))
    code, _, _ = model.posterior(params, mutable, x, label)

    def decode(z: Array, like: Array) -> Array:
        classes = None if label is None else label[like]
        return model.centre(params, mutable, z, classes)

    images = {
        "reconstructions": latents.reconstructions(
            batch[model.spec.target], decode(code, jnp.arange(len(code)))
        ),
        "traversals": latents.traversals(code, decode),
        "latent_map": latents.scatter(code, batch.get("label"), class_names(model.spec)),
    }
    if len(code) > 1:
        images["interpolations"] = latents.interpolations(code, decode)
    if code.shape[1] == 2:
        images["manifold"] = latents.manifold(decode)
    return images


def from_networks(
    encoder: Functional,
    decoder: Functional,
    options: Options,
    spec: DataSpec,
    rules: Rules,
    warmup_steps: int = 0,
) -> Method:
    """The autoencoder with any two networks that have the call signatures in `Autoencoder`."""
    model = Autoencoder(encoder, decoder, options, spec, warmup_steps)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = {}, {}
        for i, name in enumerate(("encoder", "decoder")):
            net = getattr(model, name)
            params[name], mutable[name] = net.init(jax.random.fold_in(key, i))
        if options.likelihood == "gaussian":
            params["log_scale"] = jnp.zeros(())
        return {"vae": params}, {"vae": mutable}

    codec = Codec(("vae",), partial(encode, model), partial(decode, model))
    return Method(
        init=init,
        phases=(Phase("vae", partial(loss, model)),),
        evaluate=partial(evaluate, model),
        sample=partial(sample, model),
        rules=(("log_scale$", replicate), *rules),
        pictures=partial(pictures, model),
        conditions=label_condition(spec, options.class_conditional),
        codec=None if options.class_conditional else codec,  # which is given no labels
    )


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The autoencoder of `config.vae` with the networks of `config.model` on the data of `spec`.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Encoder`,
    `Decoder` and `RULES`; `config.model.encoder` and `.decoder` are their options.

    Raises:
      ConfigError: the data are not images, or the config asks for something that does not exist.
    """
    options, model = options_from_config(config.vae, spec), config.model
    module = find_module(
        "model.network", model.network, "genjax.networks", "Encoder", "Decoder", "RULES"
    )
    # Vectors of real numbers are used to test the theory; images are 8-bit.
    vectors = spec.generated.kind == "real"
    *space, channels = shape = spec.generated.shape if vectors else image_shape(spec, "vae")
    shared = {
        "latent_dim": options.latent_dim,
        "num_classes": num_classes(spec) if options.class_conditional else 0,
        "dtype": jnp.dtype(config.precision),
    }
    outputs = (*space, 2 * channels if options.likelihood == "logistic" else channels)

    def encoder(rngs):
        return construct(
            module.Encoder, model.encoder, "model.encoder", shape=shape, rngs=rngs, **shared
        )

    def decoder(rngs):
        return construct(
            module.Decoder, model.decoder, "model.decoder", shape=outputs, rngs=rngs, **shared
        )

    examples = spec.sizes.get("train", 0)
    warmup = steps_within(config, examples, "vae.kl_warmup", options.kl_warmup)
    return from_networks(
        functional(encoder), functional(decoder), options, spec, module.RULES, warmup
    )
