"""Adversarial networks on texts, whose tokens have no gradient: three ways around it, by `kind`.

- "seqgan" (Yu et al. 2017): a language model is the policy, the discriminator its reward, and the
  value of a token the mean reward of texts that are completed after it (REINFORCE with rollouts).
- "gumbel" (Kusner & Hernandez-Lobato 2016; Nie et al. 2019): tokens are relaxed to a softmax of
  logits and Gumbel noise, at a temperature that falls during training.
- "wgan_gp" (Gulrajani et al. 2017, section 5.4): a generator without recurrence makes the
  distributions of all tokens at once, and a critic sees them as if they were one-hot tokens.

The first two begin with maximum likelihood. The losses of discriminators, and those of generators
that have a gradient, are those of `methods/gan.py`.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from genjax.checks import ConfigError, one_of, require
from genjax.config import construct, read_options
from genjax.durations import steps_within
from genjax.method import (
    Aux,
    Batch,
    DataSpec,
    Follow,
    Method,
    Phase,
    Ratio,
    Rules,
    Tree,
    find_module,
)
from genjax.methods import gan, lm
from genjax.methods.text_game import KINDS, Clock, Options, TextGame, complete, values
from genjax.nn.adversarial import LOSSES
from genjax.nn.functional import Functional, functional
from genjax.sampling.conditions import Condition


def policy_loss(
    game: TextGame, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """A loss whose gradient is minus the policy gradient (Yu et al. 2017, eq. 6 to 8).

    Texts are drawn without dropout, and their likelihood is that of the network they are drawn
    from. The gradient is a sum over the tokens of a text and a mean over texts.
    """
    key_text, key_value = (jax.random.fold_in(key, i) for i in range(2))
    frozen = jax.lax.stop_gradient(params)
    B = len(batch["token"])
    nothing, none = jnp.zeros((B, game.length), jnp.int32), jnp.zeros(B, jnp.int32)
    token = complete(game, frozen["generator"], mutable["generator"], nothing, none, key_text)
    value = values(game, frozen, mutable, token, key_value)
    advantage = value
    if game.options.baseline:
        require(B > 1, "batch_size / accumulation", B, "2 or more with text_gan.baseline")
        advantage = value - (value.sum(0) - value) / (B - 1)
    ended = game.ended(token)
    counts = (jnp.cumsum(ended, 1) - ended) == 0  # up to the token that ends the text
    text = {
        "token": jnp.pad(token, ((0, 0), (1, 0)), constant_values=game.special["start"]),
        "segment": jnp.pad(counts, ((0, 0), (1, 0)), constant_values=True).astype(jnp.int32),
    }
    terms, _ = game.language.terms(params["generator"], mutable["generator"], text)
    loss = (terms.nll * terms.weight * advantage).sum(1).mean()
    metrics = {
        "reward": value[:, -1].mean(),
        "first_value": value[:, 0].mean(),
        "entropy": (terms.nll * terms.weight).sum() / terms.weight.sum(),
    }
    return loss, Aux(metrics, {}, float(B))


def likelihood_loss(
    game: TextGame, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The loss of `methods/lm.py`."""
    own = ({"lm": tree["generator"]} for tree in (params, mutable))
    loss, aux = lm.loss(game.language, *own, game.started(batch), key, step)
    return loss, aux._replace(mutable={"generator": aux.mutable["lm"]})


def discriminator_loss(
    game: TextGame, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The loss of `methods/gan.py`."""
    return gan.discriminator_loss(game.played(step), params, mutable, game.real(batch), key, step)


def generator_loss(
    game: TextGame, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The loss of `methods/gan.py`, for kinds whose texts have a gradient."""
    loss, aux = gan.generator_loss(game.played(step), params, mutable, game.real(batch), key, step)
    if game.options.kind == "gumbel":
        aux.metrics["temperature"] = jnp.float32(game.temperature(step))
    return loss, aux


def evaluate(
    game: TextGame, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Ratio]:
    """The logits of texts and of as many samples, and the metrics of a language model if it is one.

    The temperature of "gumbel" is that at the end of the run.
    """
    played = game.played(game.clock.end)
    metrics = gan.evaluate(played, params, mutable, game.real(batch), key)
    if game.options.kind == "wgan_gp":
        return metrics
    own = ({"lm": tree["generator"]} for tree in (params, mutable))
    return lm.evaluate(game.language, *own, game.started(batch), key) | metrics


def sample(
    game: TextGame,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Int[Array, "B S"]:
    """Draws texts of a language model: the start token, then T tokens, -1 after the end.

    Args:
      game: the networks.
      params: their parameters.
      mutable: their mutable state.
      key: random key of the draws.
      num: texts to draw.
      condition: must be empty.
      temperature: divides the logits; 0 takes the most probable token.
      top_k: see `logits.Options`.
      top_p: see there.

    Raises:
      ConfigError: a condition, or an option out of range.
    """
    names = tuple(condition)
    require(not names, "conditions", names, "none: texts are drawn from the beginning")
    own = ({"lm": tree["generator"]} for tree in (params, mutable))
    chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return lm.sample(game.language, *own, key, num, max_new_tokens=game.length, **chosen)


def sample_at_once(
    game: TextGame,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition = MappingProxyType({}),
) -> Int[Array, "B S"]:
    """Draws texts of "wgan_gp", of which each token is the most probable one, as `sample` does.

    Raises:
      ConfigError: a condition.
    """
    names = tuple(condition)
    require(not names, "conditions", names, "none: texts are drawn from the beginning")
    shares, _ = game.played(0).generate(params, mutable, key, num, None)
    token = shares.argmax(-1).astype(jnp.int32)
    ended = game.ended(token)
    token = jnp.where(jnp.cumsum(ended, 1) - ended == 0, token, -1)
    return jnp.pad(token, ((0, 0), (1, 0)), constant_values=game.special["start"])


def from_networks(game: TextGame, rules: Rules) -> Method:
    """The method of any networks that have the call signatures in `TextGame`."""
    o, clock = game.options, game.clock

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = {}, {}
        for i, name in enumerate(("generator", "discriminator")):
            net = getattr(game, name)
            params[name], mutable[name] = net.init(jax.random.fold_in(key, i))
        return params, mutable

    phases = []
    if clock.discriminator:
        phases.append(Phase("generator", partial(likelihood_loss, game), stop=clock.discriminator))
    play = policy_loss if o.kind == "seqgan" else generator_loss
    opposed = Phase(
        "discriminator",
        partial(discriminator_loss, game),
        o.critic_steps,
        start=clock.discriminator,
    )
    phases += [Phase("generator", partial(play, game), start=clock.game), opposed]
    alone = o.kind == "wgan_gp"
    return Method(
        init=init,
        phases=tuple(phases),
        evaluate=partial(evaluate, game),
        sample=partial(sample_at_once if alone else sample, game),
        rules=rules,
        derived=None if alone else lm.derived,
        follows={"rollout": Follow("generator", o.rollout_decay)} if o.kind == "seqgan" else {},
    )


def _of_one_hot(network: Functional, values: int) -> Functional:
    """A language model of distributions over tokens that also takes tokens."""

    def apply(params: Tree, mutable: Tree, x: Array, **named) -> tuple[Array, Tree]:
        soft = jax.nn.one_hot(x, values) if jnp.issubdtype(x.dtype, jnp.integer) else x
        return network.apply(params, mutable, soft, **named)

    return Functional(network.init, apply)


def options_from_config(config: ConfigDict, spec: DataSpec) -> Options:
    """Reads and checks the `text_gan` section.

    Raises:
      ConfigError: an unknown key or choice, options that cannot be combined, or data that are not
        texts, or rows of several.
    """
    if spec.generated.kind != "text":
        raise ConfigError(
            f"method text_gan needs text; {spec.target!r} of {spec.name} is of kind "
            f"{spec.generated.kind!r}. Give a --config.dataset.name such as brown, or text with "
            "--config.dataset.path."
        )
    o = read_options(config.text_gan, "text_gan", Options)
    one_of("text_gan.kind", o.kind, KINDS)
    one_of("text_gan.loss", o.loss, tuple(LOSSES))
    documents = config.dataset.text.documents
    expected = "'stream' or 'padded': the discriminator judges one text"
    require(documents != "packed", "config.dataset.text.documents", documents, expected)
    if o.kind == "seqgan":
        expected = "'non_saturating' or 'minimax': the reward is the sigmoid of a logit"
        require(o.loss in ("non_saturating", "minimax"), "text_gan.loss", o.loss, expected)
        expected = "0 with kind 'seqgan', whose discriminator sees tokens"
        require(not o.gradient_penalty, "text_gan.gradient_penalty", o.gradient_penalty, expected)
    if o.kind == "wgan_gp":
        for name in ("pretraining", "discriminator_pretraining"):
            expected = "'' with kind 'wgan_gp', whose generator has no likelihood"
            require(not getattr(o, name), f"text_gan.{name}", getattr(o, name), expected)
    return o


def clock_of(config: ConfigDict, options: Options, spec: DataSpec) -> Clock:
    """The steps at which the parts of the run begin.

    Raises:
      ConfigError: the run ends before the game begins.
    """

    def steps(key: str, text: str) -> int:
        return steps_within(config, spec.sizes.get("train", 0), key, text, options.critic_steps)

    names = ("pretraining", "discriminator_pretraining")
    first, second = (steps(f"text_gan.{name}", getattr(options, name)) for name in names)
    end = steps("duration", config.duration)
    expected = f"less than the run's {end} steps in all, or the game is never played"
    require(
        first + second < end, " + ".join(f"text_gan.{n}" for n in names), first + second, expected
    )
    return Clock(first, first + second, end)


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The game of `config.text_gan` with the networks of `config.model` on the texts of `spec`.

    `config.model.network` names a module of `genjax.networks` (or a dotted path) with
    `Discriminator` and `RULES`, such as `text_cnn`; for kind "wgan_gp" also with `Generator`, such
    as `text_residual`. The generator of the other kinds is the `Network` of the module that
    `config.model.language` names, such as `recurrent`. `config.model.generator` and
    `.discriminator` are their options.

    Raises:
      ConfigError: the data are not texts, or the config asks for something that does not exist.
    """
    options, model = options_from_config(config, spec), config.model
    alone = options.kind == "wgan_gp"
    exports = ("Generator", "Discriminator", "RULES") if alone else ("Discriminator", "RULES")
    module = find_module("model.network", model.network, "genjax.networks", *exports)
    rules, cls, given = module.RULES, getattr(module, "Generator", None), {}
    if alone:
        given["latent_dim"] = options.latent_dim
    else:
        language = find_module(
            "model.language", model.language, "genjax.networks", "Network", "RULES"
        )
        rules, cls, given["frames"] = (
            (*language.RULES, *rules),
            language.Network,
            options.kind == "gumbel",
        )
    values, length = spec.generated.facts["vocabulary_size"], spec.generated.shape[0] - 1

    def network(cls: type, name: str, **given) -> Functional:
        shared = {"vocabulary_size": values, "length": length, "dtype": jnp.dtype(config.precision)}
        return functional(
            lambda rngs: construct(cls, model[name], f"model.{name}", rngs=rngs, **shared, **given)
        )

    generator = network(cls, "generator", **given)
    if options.kind == "gumbel":
        generator = _of_one_hot(generator, values)
    discriminator = network(module.Discriminator, "discriminator")
    clock = clock_of(config, options, spec)
    return from_networks(TextGame(generator, discriminator, options, spec, clock), rules)
