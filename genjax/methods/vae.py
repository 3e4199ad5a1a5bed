"""Variational autoencoders (Kingma & Welling 2014) with a Gaussian code, on 8-bit images or floats.

Bernoulli, Gaussian and discretised logistic decoders; beta weighting, KL warm-up and free bits; the
importance-weighted bound and its doubly reparameterised gradient; labels; the likelihood of test
examples by importance sampling. Everything is in nats an example, summed over dimensions.
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
from genjax.method import Aux, Batch, DataSpec, Method, Phase, Rules, Tree, find_module
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
# Scales of encoder and decoder stay within exp(+-LIMIT), whatever a network says.
LIMIT = 10.0
Samples = Annotated[int, Range(1, 100_000)]


class Options(NamedTuple):
    """The `vae` section of a config, and its defaults.

    Attributes:
      latent_dim: length of z.
      likelihood: p(x | z): "bernoulli", of pixels that are drawn anew as 0 or 1 with their
        brightness for probability (Burda et al. 2016, section 5); "gaussian", with one learned
        scale for all dimensions (Rybkin et al. 2021), discretised to 8 bits if the data are;
        "logistic", discretised to 8 bits, with a scale for each dimension (Kingma et al. 2016,
        appendix C.1).
      bound: what is maximised: "elbo", its KL in closed form (Kingma & Welling 2014, eq. 10);
        "iwae" (Burda et al. 2016, eq. 8); "dreg", that with the doubly reparameterised gradient
        (Tucker et al. 2019, eq. 8).
      samples: k, samples of z for each example in training.
      beta: weight of the KL (Higgins et al. 2017, eq. 4), and with the other bounds of each
        sample's log q(z | x) - log p(z), whose mean that is.
      kl_warmup: duration over which that weight grows from 0, such as "10_epochs"; empty: none.
      free_bits: nats of KL that each dimension of z has for nothing (Kingma et al. 2016, eq. 15);
        with "elbo" only.
      class_conditional: whether encoder and decoder are told the label (Sohn et al. 2015).
      eval_samples: k of the estimate of log p(x) in evaluations; 1 leaves it out.
      eval_chunk: of these samples, how many are decoded at once; it must divide them.
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
      ConfigError: an unknown key or choice, a number out of range, settings that exclude each
        other, labels asked for that the data lack, or a likelihood of other data.
    """
    o = read_options(section, "vae", Options)
    one_of("vae.likelihood", o.likelihood, LIKELIHOODS)
    one_of("vae.bound", o.bound, BOUNDS)
    if o.bound != "elbo" and o.free_bits:
        raise ConfigError(
            f"vae.bound={o.bound!r} has no KL of each dimension: leave free_bits=0, or use "
            "bound='elbo'."
        )
    if o.eval_samples % min(o.eval_chunk, o.eval_samples):
        raise ConfigError(
            f"vae.eval_samples={o.eval_samples}: expected a multiple of "
            f"vae.eval_chunk={o.eval_chunk}."
        )
    required_classes(spec, "vae.class_conditional=True", o.class_conditional)
    if o.likelihood != "gaussian" and spec.generated.dtype != jnp.uint8:
        raise ConfigError(
            f"vae.likelihood={o.likelihood!r} is one of 8-bit images, and these are "
            f"{spec.generated.dtype}: set dataset.dequantize=False."
        )
    return o


class Autoencoder(NamedTuple):
    """The networks, and what every function of the family needs to know beside its arrays."""

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
        """x as the likelihood has it, and the labels if the networks know them."""
        x, label = (
            batch[self.spec.target],
            batch["label"] if self.options.class_conditional else None,
        )
        if self.options.likelihood == "bernoulli":
            # Drawn once: without the barrier XLA draws it again in every loop that reads it.
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

        Examples come before samples, so that a batch split over devices stays where it is.
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
        """log p(x | z), summed over dimensions, of the decoder's output."""

        def flat(a: Array) -> Float[Array, "B S D"]:  # loops over W and C alone are too short
            return a.reshape(*a.shape[:2], -1)

        x = flat(x[:, None])
        if self.options.likelihood == "bernoulli":
            each = likelihoods.bernoulli(x, flat(out))
        elif self.options.likelihood == "gaussian":
            log_scale = likelihoods.bounded(params["log_scale"], LIMIT)
            density = likelihoods.gaussian
            if self.discrete:
                density = partial(likelihoods.discretised, "gaussian")
            each = density(x, flat(out), log_scale)
        else:
            mean, log_scale = map(flat, jnp.split(out, 2, axis=-1))
            log_scale = likelihoods.bounded(log_scale, LIMIT)
            each = likelihoods.discretised_logistic(x, mean, log_scale)
        return each.sum(-1)

    def centre(self, params: Tree, mutable: Tree, z: Float[Array, "N Z"], label) -> Array:
        """The mean of p(x | z), of the logistic its location, in the data's own format."""
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

    With w~ the normalised weights, the decoder's gradient is sum w~ d log w / d theta, the
    encoder's sum w~^2 d log w / dz dz / dphi: the density of q counts as a constant of phi.
    Where log w has `share` times log q in it, the encoder's w~^2 becomes share w~^2 +
    (1 - share) w~: equation 7 holds of the share, and nothing stands for the rest.

    Args:
      log_weights: (params, z, mean, log_scale) -> (log w, whatever else), with log w[b, i] a
        function of z[b, i].
      params: what the decoder's gradient is taken of.
      z: the samples, as functions of mean and log_scale.
      mean: of q.
      log_scale: of q.
      share: minus the factor of log q in log w.

    Returns:
      The bound, and what else `log_weights` gave, which has no gradient.
    """

    @jax.custom_vjp
    def bound(params, z, mean, log_scale, share):
        found, rest = log_weights(params, z, mean, log_scale)
        return importance_bound(found), rest

    def forward(params, z, mean, log_scale, share):
        found, back, rest = jax.vjp(
            lambda p, z: log_weights(p, z, mean, log_scale), params, z, has_aux=True
        )
        return (importance_bound(found), rest), (jax.nn.softmax(found, axis=1), back, mean, share)

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
    """Minus the bound that the options name, in nats an example."""
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

    def weighed(params: Tree, z: Array, mean: Array, log_scale: Array) -> tuple[Array, Tree]:
        found, changed = likelihood(params, z)
        ratio = _log_ratio(z, mean, log_scale)
        return found + weight * ratio, (found, ratio, changed)

    if o.bound == "dreg":
        found, (reconstruction, ratio, decoder) = doubly_reparameterised_bound(
            weighed, params, z, mean, log_scale, weight
        )
        value = -found.mean()
    elif o.bound == "iwae":
        found, (reconstruction, ratio, decoder) = weighed(params, z, mean, log_scale)
        value = -importance_bound(found).mean()
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
    """ELBO, its parts, and log p(x) by importance sampling, in nats of each example.

    log p(x) takes `eval_samples` samples of z, decoded `eval_chunk` at a time (Burda et al. 2016,
    section 5). Of 8-bit images also minus log p(x), or the ELBO if `eval_samples` is 1, in bits
    per dimension, and `nearness` of what the mean of q(z | x) is decoded to. The bits are
    `bits_per_dim` of the 8-bit image, but `binary_bits_per_dim` with "bernoulli", whose pixels are
    0 or 1: the two do not compare.
    """
    o, params, mutable = model.options, params["vae"], mutable["vae"]
    key_x, key_z = (jax.random.fold_in(key, i) for i in range(2))
    x, label = model.data(batch, key_x)
    mean, log_scale, _ = model.posterior(params, mutable, x, label)
    chunk = min(o.eval_chunk, o.eval_samples)

    def look(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        total, weight = carry
        z = _draw(jax.random.fold_in(key_z, index), chunk, mean, log_scale)
        found = model.log_likelihood(params, model.decode(params, mutable, z, label)[0], x)
        more = logsumexp(found + _log_ratio(z, mean, log_scale), axis=1)
        return (total + found.sum(1), jnp.logaddexp(weight, more)), None

    nothing = (jnp.zeros(len(x)), jnp.full(len(x), -jnp.inf))
    (total, weight), _ = jax.lax.scan(look, nothing, jnp.arange(o.eval_samples // chunk))
    reconstruction = total / o.eval_samples
    kl = likelihoods.gaussian_kl(mean, log_scale).sum(-1)
    found = {"elbo": reconstruction - kl, "kl": kl, "reconstruction": reconstruction}
    nats = found["elbo"]
    if o.eval_samples > 1:
        nats = found["log_likelihood"] = weight - math.log(o.eval_samples)
    if model.discrete:
        name = "binary_bits_per_dim" if o.likelihood == "bernoulli" else "bits_per_dim"
        found[name] = -nats / (math.log(2) * x[0].size)
        made = model.centre(params, mutable, mean, label)
        image = to_float(batch[model.spec.target])
        found |= nearness(to_float(made), image)
    return found


def sample(
    model: Autoencoder,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
) -> Array:
    """Draws `num` codes from the prior and returns the centre of p(x | z), as the data are.

    Args:
      model: the networks.
      params: their parameters.
      mutable: their mutable state.
      key: draws z.
      num: samples to draw.
      condition: `label`; without it each class in turn.

    Raises:
      ConfigError: labels for a model that knows none.
    """
    known, key_label = model.options.class_conditional, jax.random.fold_in(key, 1)
    given = labels(model.spec, known, num, condition, key_label, "vae.class_conditional=True")
    z = jax.random.normal(jax.random.fold_in(key, 0), (num, model.options.latent_dim))
    return model.centre(params["vae"], mutable["vae"], z, given)


def pictures(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Array]:
    """Reconstructions, interpolations, traversals and a map of the code: see `sampling.latents`."""
    params, mutable = params["vae"], mutable["vae"]
    x, label = model.data(batch, jax.random.fold_in(key, 0))
    code, _, _ = model.posterior(params, mutable, x, label)

    def decode(z: Array, like: Array) -> Array:
        known = None if label is None else label[like]
        return model.centre(params, mutable, z, known)

    made = {
        "reconstructions": latents.reconstructions(
            batch[model.spec.target], decode(code, jnp.arange(len(code)))
        ),
        "traversals": latents.traversals(code, decode),
        "latent_map": latents.scatter(code, batch.get("label"), class_names(model.spec)),
    }
    if len(code) > 1:
        made["interpolations"] = latents.interpolations(code, decode)
    if code.shape[1] == 2:
        made["manifold"] = latents.manifold(decode)
    return made


def from_networks(
    encoder: Functional,
    decoder: Functional,
    options: Options,
    spec: DataSpec,
    rules: Rules,
    warmup_steps: int = 0,
) -> Method:
    """The autoencoder of any two networks with the call signatures that `Autoencoder` names."""
    model = Autoencoder(encoder, decoder, options, spec, warmup_steps)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = {}, {}
        for i, name in enumerate(("encoder", "decoder")):
            net = getattr(model, name)
            params[name], mutable[name] = net.init(jax.random.fold_in(key, i))
        if options.likelihood == "gaussian":
            params["log_scale"] = jnp.zeros(())
        return {"vae": params}, {"vae": mutable}

    return Method(
        init=init,
        phases=(Phase("vae", partial(loss, model)),),
        evaluate=partial(evaluate, model),
        sample=partial(sample, model),
        rules=(("log_scale$", replicate), *rules),
        pictures=partial(pictures, model),
        conditions=label_condition(spec, options.class_conditional),
    )


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The autoencoder of `config.vae` with the networks of `config.model` on the data of `spec`.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Encoder`,
    `Decoder` and `RULES`; `config.model.encoder` and `.decoder` are their options.

    Raises:
      ConfigError: the data are no images, or the config asks for something that does not exist.
    """
    options, model = options_from_config(config.vae, spec), config.model
    module = find_module(
        "model.network", model.network, "genjax.networks", "Encoder", "Decoder", "RULES"
    )
    # Vectors of real numbers are what the theory is tested on; pictures are 8-bit.
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
