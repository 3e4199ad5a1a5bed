"""The networks of a text GAN, and how its texts are drawn and valued: see `methods/text_gan.py`."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from genjax.checks import Positive, Range, Rate, Weight, Width
from genjax.data.alphabets import ends
from genjax.method import Batch, DataSpec, Tree
from genjax.methods import gan, lm
from genjax.nn.functional import Functional
from genjax.sampling.categorical import gumbel, inverted

KINDS = ("seqgan", "gumbel", "wgan_gp")


class Options(NamedTuple):
    """The `text_gan` section of a config, and its defaults.

    Attributes:
      kind: one of `KINDS`.
      loss: a name in `LOSSES`; of "seqgan" one whose sigmoid is a probability.
      critic_steps: updates of the discriminator per step, each on its own batch.
      gradient_penalty: weight of (|grad D| - 1)^2 between real and generated texts (Gulrajani et
        al. 2017, eq. 3); 0 is off, and "seqgan" has no such gradient.
      pretraining: how long the generator is trained by maximum likelihood, before anything else.
      discriminator_pretraining: how long after that the discriminator is trained alone.
      rollouts: texts that complete each beginning, N of "seqgan".
      rollout_decay: of the average of the generator that completes them; 0: the generator itself.
      baseline: whether the mean value over the other texts of the batch is subtracted from the
        value of each token of "seqgan"; not in the paper.
      temperature: of "gumbel", when the game begins.
      final_temperature: at the end of the run; in between it falls exponentially (Nie et al. 2019,
        section 3.3, whose beta is 1 / temperature).
      latent_dim: dimensions of z ~ N(0, I) of "wgan_gp".
    """

    kind: str = "seqgan"
    loss: str = "non_saturating"
    critic_steps: Annotated[int, Range(1, 1000)] = 1
    gradient_penalty: Weight = 0.0
    pretraining: str = ""
    discriminator_pretraining: str = ""
    rollouts: Annotated[int, Range(1, 10_000)] = 16
    rollout_decay: Rate = 0.8
    baseline: bool = False
    temperature: Positive = 1.0
    final_temperature: Positive = 0.01
    latent_dim: Width = 128


class Clock(NamedTuple):
    """The steps at which the parts of a run begin.

    Attributes:
      discriminator: the first step with the discriminator and the first without likelihood.
      game: the first step in which the generator plays.
      end: the steps of the run.
    """

    discriminator: int = 0
    game: int = 0
    end: int = 1


class TextGame(NamedTuple):
    """The networks and the settings that every function of the family needs."""

    generator: Functional  # "wgan_gp": (z, label) -> probabilities [B, T, V]; else a language model
    discriminator: Functional  # (texts, label) -> (logits [B], None)
    options: Options
    spec: DataSpec
    clock: Clock = Clock()

    @property
    def length(self) -> int:
        """T, the tokens of a text after the one that starts it."""
        return self.spec.generated.shape[0] - 1

    @property
    def values(self) -> int:
        """V, the number of values of a token."""
        return self.spec.generated.facts["vocabulary_size"]

    @property
    def special(self) -> dict[str, int]:
        """The special tokens by their roles."""
        return self.spec.generated.facts["special"]

    @property
    def language(self) -> lm.Language:
        """The generator as a language model; its networks are called "lm"."""
        return lm.Language(self.generator, lm.Options(), self.spec, self.length)

    def ended(self, token: Int[Array, "..."]) -> Bool[Array, "..."]:
        """Whether a text ends with this token. Windows of a stream of text never end."""
        stops = ends(self.special) if "segment" in self.spec.fields else ()
        return jnp.isin(token, jnp.array(stops, jnp.int32))

    @property
    def filler(self) -> int:
        """The token after the end of a text, as in the data."""
        return self.special.get("pad", self.special.get("eos", self.special["start"]))

    def started(self, batch: Batch) -> Batch:
        """The batch with `start` before each text, for the language model."""
        return {**batch, "token": batch["token"].at[:, 0].set(self.special["start"])}

    def real(self, batch: Batch) -> Batch:
        """The texts of a batch as the discriminator sees them, for `methods/gan.py`."""
        token = batch["token"][:, 1:]
        soft = self.options.kind != "seqgan"
        return {self.spec.target: jax.nn.one_hot(token, self.values) if soft else token}

    def temperature(self, step: Array | int) -> Float[Array, ""]:
        """The temperature of "gumbel" at a step."""
        first, last = self.options.temperature, self.options.final_temperature
        begin, end = self.clock.game, self.clock.end
        share = jnp.clip((step - begin) / max(end - begin, 1), 0.0, 1.0)
        return first * (last / first) ** share

    def played(self, step: Array | int) -> gan.Game:
        """The game of `methods/gan.py`, whose generator draws texts."""
        o, generator = self.options, self.generator

        def draw(params: Tree, mutable: Tree, z: Array, label: None, *, key: Array, train: bool):
            nothing = jnp.zeros((len(z), self.length), jnp.int32)
            if o.kind == "seqgan":
                given = jnp.zeros(len(z), jnp.int32)
                return complete(self, params, mutable, nothing, given, key), mutable
            return relaxed(self, params, mutable, len(z), self.temperature(step), key), mutable

        if o.kind != "wgan_gp":
            generator = Functional(generator.init, draw)
        options = gan.Options(o.loss, o.latent_dim, o.critic_steps, o.gradient_penalty)
        return gan.Game(generator, self.discriminator, options, self.spec)


def complete(
    game: TextGame,
    params: Tree,
    mutable: Tree,
    token: Int[Array, "R T"],
    given: Int[Array, "R"],
    key: Array,
) -> Int[Array, "R T"]:
    """Draws each text from the language model, after its first `given` tokens, which are kept."""
    apply = game.language.bound({"lm": params}, {"lm": mutable})
    rows, length = token.shape

    def choose(logits: Array, t: Array | int, done: Array) -> tuple[Array, Array]:
        drawn = inverted(jax.random.fold_in(key, t), logits[:, -1])
        chosen = jnp.where(t < given, token[:, t], drawn)
        chosen = jnp.where(done, game.filler, chosen)
        return chosen, done | game.ended(chosen)

    def step(carry: tuple, t: Array) -> tuple[tuple, Array]:
        chosen, done, cache = carry
        logits, cache = apply(chosen[:, None], cache=cache)
        chosen, done = choose(logits, t, done)
        return (chosen, done, cache), chosen

    start = jnp.full((rows, 1), game.special["start"], jnp.int32)
    logits, cache = apply(start, capacity=length)
    first, done = choose(logits, 0, jnp.zeros(rows, bool))
    _, rest = jax.lax.scan(step, (first, done, cache), jnp.arange(1, length))
    return jnp.concatenate([first[None], rest]).T


def relaxed(
    game: TextGame,
    params: Tree,
    mutable: Tree,
    num: int,
    temperature: Float[Array, ""] | float,
    key: Array,
) -> Float[Array, "B T V"]:
    """Draws texts whose tokens are softmax((logits + Gumbel noise) / temperature).

    (Jang et al. 2017, eq. 2; Maddison et al. 2017.) The argmax of a token is an exact draw at any
    temperature, and the token tends to it as the temperature falls. A text ends as far as its
    tokens so far are tokens that end it; the rest is the filler.
    """
    apply = game.language.bound({"lm": params}, {"lm": mutable})
    values = jnp.arange(game.values)
    stops, filler = game.ended(values), jax.nn.one_hot(game.filler, game.values)

    def choose(logits: Array, t: Array | int, open_: Array) -> tuple[Array, Array]:
        noise = gumbel(jax.random.fold_in(key, t), (num, game.values))
        token = jax.nn.softmax((logits[:, -1] + noise) / temperature)
        token = open_ * token + (1 - open_) * filler
        return token, open_ * (1 - (token * stops).sum(-1, keepdims=True))

    def step(carry: tuple, t: Array) -> tuple[tuple, Array]:
        token, open_, cache = carry
        logits, cache = apply(token[:, None], cache=cache)
        token, open_ = choose(logits, t, open_)
        return (token, open_, cache), token

    start = jnp.broadcast_to(values == game.special["start"], (num, 1, game.values))
    logits, cache = apply(start.astype(jnp.float32), capacity=game.length)
    first, open_ = choose(logits, 0, jnp.ones((num, 1)))
    _, rest = jax.lax.scan(step, (first, open_, cache), jnp.arange(1, game.length))
    return jnp.concatenate([first[None], rest]).swapaxes(0, 1)


def reward(
    game: TextGame, params: dict, mutable: dict, token: Int[Array, "R T"]
) -> Float[Array, "R"]:
    """The discriminator's probability that a text is real."""
    logits, _, _ = game.played(0).judge(params, mutable, token, None, jax.random.key(0))
    return jax.nn.sigmoid(logits)


def values(
    game: TextGame, params: dict, mutable: dict, token: Int[Array, "B T"], key: Array
) -> Float[Array, "B T"]:
    """The value of each token: the mean reward of N texts that begin as this one up to the token.

    (Yu et al. 2017, eq. 4.) They are completed by the network "rollout". The value of the last
    token is the reward of the text itself.
    """
    B, T = token.shape
    last = reward(game, params, mutable, token)
    if T == 1:
        return last[:, None]
    given, rows = jnp.repeat(jnp.arange(1, T), B), jnp.tile(token, (T - 1, 1))

    def one(key: Array) -> Float[Array, "R"]:
        whole = complete(game, params["rollout"], mutable["generator"], rows, given, key)
        return reward(game, params, mutable, whole)

    rewards = jax.lax.map(one, jax.random.split(key, game.options.rollouts))
    return jnp.concatenate([rewards.mean(0).reshape(T - 1, B), last[None]]).T
