"""Generative adversarial networks (Goodfellow et al. 2014) on images, or on points.

Loss, regularisers, network, conditioning, augmentation and packing can be chosen independently. The
Wasserstein papers call the discriminator the critic.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range, Weight, Width, one_of, require
from genjax.config import construct, read_options
from genjax.method import (
    Alarm,
    Aux,
    Batch,
    DataSpec,
    Method,
    Phase,
    Ratio,
    Rules,
    Tree,
    find_module,
)
from genjax.modalities.image import image_shape
from genjax.modalities.label import label_condition, num_classes, required_classes
from genjax.networks import gan_head
from genjax.nn import augment
from genjax.nn.adversarial import (
    LOSSES,
    Logits,
    interpolate,
    unit_norm_penalty,
    zero_penalty,
)
from genjax.nn.functional import Functional, functional
from genjax.nn.pixels import to_float, to_uint8
from genjax.parallel.rules import path_name, replicate
from genjax.sampling.conditions import Condition, labels

AUGMENTATIONS = {"none": (), "diffaugment": augment.DIFFAUGMENT, "ada": augment.ADA}


class Options(NamedTuple):
    """The `gan` section of a config, and its defaults.

    Attributes:
      loss: a name in `LOSSES`.
      latent_dim: dimensions of z ~ N(0, I).
      critic_steps: updates of the discriminator per step, each on its own batch.
      gradient_penalty: weight of (|grad D| - 1)^2 between real and fake (Gulrajani et al. 2017,
        eq. 3); 0 is off.
      r1: gamma of gamma / 2 |grad D|^2 on real images (Mescheder et al. 2018, eq. 9); 0 is off.
      r2: the same on fake images (eq. 10).
      penalty_every: steps between two updates with the penalties (lazy regularisation, Karras et
        al. 2020, appendix B of StyleGAN2); their weights are multiplied by it and by
        critic_steps. The optimizer's settings do not change.
      conditioning: how the discriminator learns the label: "none", "concatenation" (Mirza &
        Osindero 2014), "projection" (Miyato & Koyama 2018) or "auxiliary" (Odena et al. 2017).
        All but "none" also give the label to the generator.
      auxiliary_weight: weight of the auxiliary classifier's cross-entropy, in both players' losses.
      augment: augmentation of the discriminator's inputs: "none", "diffaugment" (Zhao et al. 2020)
        or "ada" (Karras et al. 2020).
      augment_policy: its parts, from `augment.DIFFAUGMENT` or `augment.ADA`; empty uses all.
      ada_target: target value of E[sign D(real)] for "ada".
      ada_images: number of real images in which "ada" can move p from 0 to 1.
      packing: examples that the discriminator judges together (PacGAN, Lin et al. 2018).
    """

    loss: str = "non_saturating"
    latent_dim: Width = 100
    critic_steps: Annotated[int, Range(1, 1000)] = 1
    gradient_penalty: Weight = 0.0
    r1: Weight = 0.0
    r2: Weight = 0.0
    penalty_every: Annotated[int, Range(1, 1_000_000)] = 1
    conditioning: str = "none"
    auxiliary_weight: Weight = 1.0
    augment: str = "none"
    augment_policy: tuple[str, ...] = ()
    ada_target: Annotated[float, Range(-1, 1, above=True, below=True)] = 0.6
    ada_images: Annotated[int, Range(1, 2**31 - 1)] = 500_000
    packing: Annotated[int, Range(1, 1000)] = 1


def options_from_config(config: ConfigDict, spec: DataSpec) -> Options:
    """Reads and checks the `gan` section.

    Raises:
      ConfigError: an unknown key or choice, a number out of range, labels that the data do not
        have, packing with a head that needs one label per example, or a batch size that is not a
        multiple of packing.
    """
    o = read_options(config.gan, "gan", Options)
    one_of("gan.loss", o.loss, tuple(LOSSES))
    one_of("gan.conditioning", o.conditioning, gan_head.CONDITIONING)
    one_of("gan.augment", o.augment, tuple(AUGMENTATIONS))
    policies = AUGMENTATIONS[o.augment]
    for name in o.augment_policy:
        if not policies:
            raise ConfigError(
                f"gan.augment_policy={o.augment_policy!r}, but there is no augmentation. Set "
                "gan.augment to 'diffaugment' or 'ada'."
            )
        one_of(f"gan.augment_policy of {o.augment!r}", name, policies)
    if o.penalty_every > 1 and not _has_penalty(o):
        raise ConfigError(
            f"gan.penalty_every={o.penalty_every}, but there is no penalty. Set gan.r1, gan.r2 or "
            "gan.gradient_penalty, or penalty_every=1."
        )
    required_classes(spec, f"gan.conditioning={o.conditioning!r}", o.conditioning != "none")
    if o.packing > 1 and o.conditioning in ("projection", "auxiliary"):
        raise ConfigError(
            f"gan.packing={o.packing} with gan.conditioning={o.conditioning!r}: {o.packing} "
            "examples of different labels share one output. Use 'none' or 'concatenation', or "
            "packing=1."
        )
    if o.augment == "ada" and LOSSES[o.loss].threshold is None:
        raise ConfigError(
            f"gan.augment='ada' needs the sign of the discriminator's logits, which has no "
            f"meaning with gan.loss={o.loss!r}. Use 'diffaugment', or another loss."
        )
    sizes = {
        "batch_size / accumulation": config.batch_size // config.accumulation,
        "evals.batch_size": config.evals.batch_size,
    }
    for name, size in sizes.items():
        require(size % o.packing == 0, name, size, f"a multiple of gan.packing={o.packing}")
    return o


def _has_penalty(o: Options) -> bool:
    return any((o.gradient_penalty, o.r1, o.r2))


class Game(NamedTuple):
    """The two networks and the settings that every function of the family needs."""

    generator: Functional  # (z, label) -> samples in [-1, 1]
    discriminator: Functional  # (x, label) -> (logits, class logits or None)
    options: Options
    spec: DataSpec

    def data(self, batch: Batch) -> tuple[Float[Array, "B *shape"], Int[Array, "B"] | None]:
        """The real examples, 8-bit images scaled to [-1, 1], and the labels if they are used."""
        x = batch[self.spec.target]
        label = batch["label"] if self.options.conditioning != "none" else None
        return to_float(x) if x.dtype == jnp.uint8 else x, label

    def generate(
        self, params: Tree, mutable: Tree, key: Array, num: int, label, train: bool = False
    ) -> tuple[Float[Array, "B *shape"], dict[str, Tree]]:
        """`num` samples and the generator's new mutable state."""
        key_z, key_net = (jax.random.fold_in(key, i) for i in range(2))
        z = jax.random.normal(key_z, (num, self.options.latent_dim))
        x, changed = self.generator.apply(
            params["generator"], mutable["generator"], z, label, key=key_net, train=train
        )
        return x, {"generator": changed}

    def judge(
        self, params: Tree, mutable: Tree, x, label, key: Array, train: bool = False
    ) -> tuple[Logits, Float[Array, "N K"] | None, dict[str, Tree]]:
        """Logits, class logits, the discriminator's new mutable state; augments x in training."""
        key_augment, key_net = (jax.random.fold_in(key, i) for i in range(2))
        o = self.options
        policy = o.augment_policy or AUGMENTATIONS[o.augment]
        if train and o.augment == "diffaugment":
            x = augment.diffaugment(x, key_augment, policy)
        elif train and o.augment == "ada":
            x = augment.ada(x, mutable["augment"]["p"], key_augment, policy)
        (logits, classes), changed = self.discriminator.apply(
            params["discriminator"], mutable["discriminator"], x, label, key=key_net, train=train
        )
        return logits, classes, {"discriminator": changed}

    def slope(
        self, params: Tree, mutable: Tree, x, label, key: Array
    ) -> tuple[Float[Array, "N D"], tuple[Logits, Float[Array, "N K"] | None, dict[str, Tree]]]:
        """d logit / d x per example or pack, flattened; and the results of `judge` in training."""

        def total(x):
            judged = self.judge(params, mutable, x, label, key, train=True)
            return judged[0].sum(), judged

        gradient, judged = jax.grad(total, has_aux=True)(x)
        return gradient.reshape(judged[0].shape[0], -1), judged


def _class_loss(classes: Float[Array, "B K"], label: Int[Array, "B"]) -> Float[Array, ""]:
    return optax.softmax_cross_entropy_with_integer_labels(classes, label).mean()


class Judgement(NamedTuple):
    """The discriminator's results for real and fake examples in training."""

    real: tuple[Logits, Array | None]
    fake: tuple[Logits, Array | None]
    penalty: Float[Array, ""]
    metrics: dict[str, Array]
    mutable: dict[str, Tree]


def confront(
    game: Game, params: Tree, mutable: Tree, batch: Batch, key: Array, penalised: bool
) -> Judgement:
    """Judges a batch and as many samples in training; sums the penalties if `penalised`."""
    o = game.options
    key_z, key_real, key_fake, key_alpha, key_between = (
        jax.random.fold_in(key, i) for i in range(5)
    )
    real, label = game.data(batch)
    fake, _ = game.generate(params, mutable, key_z, real.shape[0], label, train=True)
    penalty, metrics = jnp.float32(0), {}
    sides = {}
    inputs = (("real", real, "r1", key_real), ("fake", fake, "r2", key_fake))
    for side, x, name, key_side in inputs:
        weight = getattr(o, name)
        if weight and penalised:
            slope, (logits, classes, changed) = game.slope(params, mutable, x, label, key_side)
            metrics[name] = zero_penalty(slope)
            penalty += weight * metrics[name]
        else:
            logits, classes, changed = game.judge(params, mutable, x, label, key_side, train=True)
        sides[side] = (logits, classes)
        mutable = {**mutable, **changed}
    if o.gradient_penalty and penalised:
        between = interpolate(real, fake, key_alpha, o.packing)
        slope, _ = game.slope(params, mutable, between, label, key_between)
        metrics["gradient_penalty"] = unit_norm_penalty(slope)
        penalty += o.gradient_penalty * metrics["gradient_penalty"]
    return Judgement(sides["real"], sides["fake"], penalty, metrics, mutable)


def discriminator_loss(
    game: Game, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The discriminator's loss, including its penalties unless they are lazy."""
    o = game.options
    judgement = confront(game, params, mutable, batch, key, penalised=o.penalty_every == 1)
    (real, real_classes), (fake, fake_classes) = judgement.real, judgement.fake
    game_loss = LOSSES[o.loss]
    loss, threshold = game_loss.discriminator(real, fake) + judgement.penalty, game_loss.threshold
    metrics = {"real_logit": real.mean(), "fake_logit": fake.mean(), **judgement.metrics}
    if threshold is None:
        metrics["pair_accuracy"] = (real > fake).mean()
    else:
        metrics["real_accuracy"] = (real > threshold).mean()
        metrics["fake_accuracy"] = (fake < threshold).mean()
    changed = {"discriminator": judgement.mutable["discriminator"]}
    if o.conditioning == "auxiliary":
        label = batch["label"]
        metrics["class_loss"] = _class_loss(real_classes, label)
        loss += o.auxiliary_weight * (metrics["class_loss"] + _class_loss(fake_classes, label))
    if o.augment == "ada":
        changed["augment"] = augment.ada_update(
            mutable["augment"],
            real - threshold,
            target=o.ada_target,
            images=max(o.ada_images // o.packing, 1),
        )
        metrics["ada_p"] = changed["augment"]["p"]
    return loss, Aux(metrics, changed, float(batch[game.spec.target].shape[0]))


def penalty_loss(
    game: Game, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The penalties alone, scaled up for the updates without them: the lazy phase."""
    judgement = confront(game, params, mutable, batch, key, penalised=True)
    changed = {"discriminator": judgement.mutable["discriminator"]}
    loss = game.options.penalty_every * game.options.critic_steps * judgement.penalty
    return loss, Aux(judgement.metrics, changed, float(batch[game.spec.target].shape[0]))


def generator_loss(
    game: Game, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The generator's loss; the standard deviations in the metrics show a collapse early."""
    o = game.options
    key_z, key_real, key_fake = (jax.random.fold_in(key, i) for i in range(3))
    x, label = game.data(batch)
    fake, changed = game.generate(params, mutable, key_z, x.shape[0], label, train=True)
    logits, classes, _ = game.judge(params, mutable, fake, label, key_fake, train=True)
    real = jnp.zeros_like(logits)
    if o.loss == "relativistic":
        real, _, _ = game.judge(params, mutable, x, label, key_real, train=True)
    loss = LOSSES[o.loss].generator(real, logits)
    metrics = {
        "fake_logit": logits.mean(),
        "fake_std": fake.std(axis=0).mean(),
        "real_std": x.std(axis=0).mean(),
    }
    if o.conditioning == "auxiliary":
        metrics["class_loss"] = _class_loss(classes, label)
        loss += o.auxiliary_weight * metrics["class_loss"]
    return loss, Aux(metrics, changed, float(x.shape[0]))


def evaluate(game: Game, params: dict, mutable: dict, batch: Batch, key: Array) -> dict[str, Ratio]:
    """The logits of the examples and of as many samples; the logit of a pack counts once."""
    x, label = game.data(batch)
    key_z, key_judge = (jax.random.fold_in(key, i) for i in range(2))
    fake, _ = game.generate(params, mutable, key_z, x.shape[0], label)
    real_logit, _, _ = game.judge(params, mutable, x, label, key_judge)
    fake_logit, _, _ = game.judge(params, mutable, fake, label, key_judge)
    packing = game.options.packing
    first = (jnp.arange(len(x)) % packing == 0).astype(jnp.float32)

    def once(logit: Float[Array, "N"]) -> Ratio:
        return Ratio(first * jnp.repeat(logit, packing), first)

    return {"real_logit": once(real_logit), "fake_logit": once(fake_logit)}


def sample(
    game: Game,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
) -> Array:
    """Draws `num` samples in the format of the data: 8-bit images, or floats.

    Args:
      game: the networks.
      params: their parameters.
      mutable: their mutable state; batch norm uses its running averages.
      key: draws z.
      num: samples to draw.
      condition: `label`; without it, each class in turn.

    Raises:
      ConfigError: labels were given, and the model is unconditional.
    """
    conditional, key_label = game.options.conditioning != "none", jax.random.fold_in(key, 2)
    setting = "gan.conditioning='projection'"
    classes = labels(game.spec, conditional, num, condition, key_label, setting)
    x, _ = game.generate(params, mutable, key, num, classes)
    return to_uint8(x) if game.spec.generated.dtype == jnp.uint8 else x


def from_networks(
    generator: Functional,
    discriminator: Functional,
    options: Options,
    spec: DataSpec,
    rules: Rules,
) -> Method:
    """The game of any two networks that have the call signatures in `Game`."""
    game = Game(generator, discriminator, options, spec)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = {}, {}
        for i, name in enumerate(("generator", "discriminator")):
            net = getattr(game, name)
            params[name], mutable[name] = net.init(jax.random.fold_in(key, i))
        if options.augment == "ada":
            mutable["augment"] = augment.ada_init()
        return params, mutable

    phases = [Phase("discriminator", partial(discriminator_loss, game), options.critic_steps)]
    if (every := options.penalty_every) > 1:
        phases.append(Phase("discriminator", partial(penalty_loss, game), every=every))
    phases.append(Phase("generator", partial(generator_loss, game)))
    return Method(
        init=init,
        phases=tuple(phases),
        evaluate=partial(evaluate, game),
        sample=partial(sample, game),
        rules=(("^mutable/augment/", replicate), *rules),
        conditions=label_condition(spec, options.conditioning != "none"),
    )


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The GAN of `config.gan` with the networks of `config.model` on the data of `spec`.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with `Generator`,
    `Discriminator` (the body: `gan_head` adds labels, packing and the logit) and `RULES`;
    `config.model.generator` and `.discriminator` are their options.

    Raises:
      ConfigError: the data are not square images, or the config asks for something that does not
        exist.
    """
    shape = image_shape(spec, "gan", square=True)
    options, model = options_from_config(config, spec), config.model
    module = find_module(
        "model.network", model.network, "genjax.networks", "Generator", "Discriminator", "RULES"
    )
    classes = num_classes(spec) if options.conditioning != "none" else 0
    dtype = jnp.dtype(config.precision)

    def generator(rngs):
        return construct(
            module.Generator,
            model.generator,
            "model.generator",
            latent_dim=options.latent_dim,
            shape=shape,
            num_classes=classes,
            dtype=dtype,
            rngs=rngs,
        )

    def discriminator(rngs):
        return gan_head.Discriminator(
            lambda input_shape: construct(
                module.Discriminator,
                model.discriminator,
                "model.discriminator",
                shape=input_shape,
                dtype=dtype,
                rngs=rngs,
            ),
            shape,
            options.conditioning,
            classes,
            options.packing,
            spectral_norm=model.discriminator.get("spectral_norm", False),
            dtype=dtype,
            rngs=rngs,
        )

    judge = functional(discriminator)
    if _has_penalty(options):
        _, mutable = jax.eval_shape(judge.init, jax.random.key(0))
        paths = (path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(mutable))
        if any(path.endswith("/mean") for path in paths):
            raise ConfigError(
                "gan.gradient_penalty, gan.r1 and gan.r2 need a discriminator that judges each "
                "example separately, but this one has batch norm: set model.discriminator.norm to "
                "'layer' or 'none'."
            )
    method = from_networks(functional(generator), judge, options, spec, module.RULES)
    collapse = (
        "the samples are nearly identical. Lower the generator's learning rate, add gan.r1 or "
        "gan.gradient_penalty, or judge several samples together with gan.packing=2."
    )
    return method._replace(alarms=(Alarm(r"eval/diversity_\w+", 0.1, 2, collapse),))
