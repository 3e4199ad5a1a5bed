"""Absorbing-state diffusion over tokens: how they are masked, and three ways to unmask them.

Each token is independently masked at time t in [0, 1] with probability 1 - alpha_t, and stays
masked (Sahoo et al. 2024, "MDLM"; Shi et al. 2024, "MD4"). The code uses 1 - alpha_t,
`Schedule.masked`, which is exact in float32 when few tokens are masked. In samplers a masked token
is -1.

Which tokens a step of the reverse process unmasks does not depend on their values: for each token
a time is drawn once, at which the process from 1 down to 0 unmasks it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from genjax.sampling import logits as processors
from genjax.sampling.categorical import categorical, gumbel, uniform
from genjax.sampling.logits import Processor

Tree = Any

SCHEDULES = ("linear", "cosine", "polynomial")
DECODINGS = ("ancestral", "first_hitting", "confidence")

# (tokens [B, S], masked share [B]) -> logits [B, S, K]
Denoise = Callable[[Int[Array, "B S"], Float[Array, "B"]], Float[Array, "B S K"]]
# (keys [B], logits [B, T, K]) -> tokens [B, T]
Choose = Callable[[Key[Array, "B"], Float[Array, "B T K"]], Int[Array, "B T"]]


class Schedule(NamedTuple):
    """The masked share over time: MD4's schedules; "linear" is MDLM's log-linear.

    Attributes:
      name: alpha_t is 1 - t if "linear", 1 - sin(pi t / 2) if "cosine" (as in MaskGIT), and
        1 - t^exponent if "polynomial".
      exponent: of "polynomial".
    """

    name: str = "linear"
    exponent: float = 2.0

    def masked(self, t: Float[Array, "*N"]) -> Float[Array, "*N"]:
        """1 - alpha_t, the probability that a token is masked: from 0 at time 0 to 1 at time 1."""
        if self.name == "cosine":
            return jnp.sin(math.pi / 2 * t)
        return t if self.name == "linear" else t**self.exponent

    def time(self, masked: Float[Array, "*N"]) -> Float[Array, "*N"]:
        """The time at which a token is masked with this probability; the inverse of `masked`."""
        if self.name == "cosine":
            return 2 / math.pi * jnp.arcsin(masked)
        return masked if self.name == "linear" else masked ** (1 / self.exponent)

    def weight(self, t: Float[Array, "*N"]) -> Float[Array, "*N"]:
        """-alpha'_t / (1 - alpha_t), the continuous-time weight (MDLM, eq. 10; MD4, eq. 5)."""
        if self.name == "cosine":
            return math.pi / 2 / jnp.tan(math.pi / 2 * t)
        return (1.0 if self.name == "linear" else self.exponent) / t

    def step_weight(self, t: Float[Array, "*N"], steps: int) -> Float[Array, "*N"]:
        """The weight in the bound of T steps, T (alpha_s - alpha_t) / (1 - alpha_t), s = t - 1 / T.

        MDLM, eq. 8: T times the probability that the step to s unmasks a masked token.
        """
        now = self.masked(t)
        return steps * (now - self.masked(jnp.maximum(t - 1 / steps, 0.0))) / now


def chooser(chain: Sequence[Processor], greedy: bool) -> Choose:
    """Makes the function that draws tokens from processed logits, or takes the most probable."""

    def choose(keys: Key[Array, "B"], logits: Float[Array, "B T K"]) -> Int[Array, "B T"]:
        flat = logits.reshape(-1, logits.shape[-1])
        history = jnp.zeros((len(flat), 0), jnp.int32)
        for process in chain:
            flat = process(flat, history)
        logits = flat.reshape(logits.shape)
        if greedy:
            return logits.argmax(-1).astype(jnp.int32)
        return jax.vmap(categorical)(keys, logits)

    return choose


def guided(
    logits: Callable[..., Array], conditional: Tree, unconditional: Tree, w: float
) -> Denoise:
    """The denoiser that knows the conditions, with guidance unless w is 1.

    Its logits are those of `processors.guided` at each token (Schiff et al. 2024, "D-CFG").

    Args:
      logits: (tokens, conditions of each example, masked share) -> logits.
      conditional: arrays of the conditions [B ...]; None for an unconditional network, with w = 1.
      unconditional: those of the same examples without conditions.
      w: the guidance scale.
    """

    def denoise(x: Int[Array, "B S"], masked: Float[Array, "B"]) -> Float[Array, "B S K"]:
        if w == 1:
            return logits(x, conditional, masked)
        both = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]), (x, conditional), (x, unconditional)
        )
        found = logits(*both, jnp.concatenate([masked, masked]))
        return processors.guided(*jnp.split(found, 2), w)

    return denoise


def ancestral(
    denoise: Denoise,
    tokens: Int[Array, "B S"],
    keys: Key[Array, "B"],
    choose: Choose,
    schedule: Schedule,
    steps: int,
) -> Int[Array, "B S"]:
    """Unmasks in `steps` steps of equal length in time (MDLM, eq. 7).

    The step from t to s unmasks each masked token independently with probability
    (alpha_s - alpha_t) / (1 - alpha_t). A step that unmasks nothing does not call the network,
    unless several batches are drawn at once (`jax.vmap`).
    """
    left = _times(keys, tokens)

    def step(tokens: Array, i: Array) -> tuple[Array, None]:
        now, after = (schedule.masked((steps - i - d) / steps) for d in (0, 1))
        unmasked = (tokens < 0) & (left >= after)

        def fill(tokens: Array) -> Array:
            logits = denoise(tokens, jnp.broadcast_to(now, len(tokens)))
            return jnp.where(unmasked, choose(_fold(keys, 1 + i), logits), tokens)

        return jax.lax.cond(unmasked.any(), fill, lambda tokens: tokens, tokens), None

    return jax.lax.scan(step, tokens, jnp.arange(steps))[0]


def first_hitting(
    denoise: Denoise, tokens: Int[Array, "B S"], keys: Key[Array, "B"], choose: Choose
) -> Int[Array, "B S"]:
    """Unmasks token by token, each at its own time: `ancestral` with infinitely many steps.

    Zheng et al. 2024, section 4.1: exact for the network, in as many calls as tokens are masked.
    The schedule sets the times but not the order, so only the masked share is needed.
    """
    left = jnp.where(tokens < 0, _times(keys, tokens), -1.0)
    order = jnp.argsort(-left, axis=1)
    rows = jnp.arange(len(tokens))

    def step(i: Array, tokens: Array) -> Array:
        at = order[:, i]
        logits = denoise(tokens, jnp.maximum(left[rows, at], 0.0))
        drawn = choose(_fold(keys, 1 + i), logits[rows, at][:, None])[:, 0]
        old = tokens[rows, at]
        return tokens.at[rows, at].set(jnp.where(old < 0, drawn, old))

    return jax.lax.fori_loop(0, (tokens < 0).sum(1).max(), step, tokens)


def confidence(
    denoise: Denoise,
    tokens: Int[Array, "B S"],
    keys: Key[Array, "B"],
    choose: Choose,
    schedule: Schedule,
    steps: int,
    choice_temperature: float,
) -> Int[Array, "B S"]:
    """Draws all masked tokens at each step, and keeps the most confident ones.

    Chang et al. 2022 (MaskGIT), section 3.2: after the step to s, floor(N (1 - alpha_s)) of the N
    tokens masked at the start are masked again, but fewer than before the step, and at least one
    except in the last step. Confidence is log p plus Gumbel noise times `choice_temperature`
    (1 - r), where r is the share of steps done.
    """
    count = (tokens < 0).sum(1)

    def step(tokens: Array, i: Array) -> tuple[Array, None]:
        now, after = (schedule.masked((steps - i - d) / steps) for d in (0, 1))
        logits = denoise(tokens, jnp.broadcast_to(now, len(tokens)))
        drawn = choose(_fold(keys, 2 * i + 1), logits)
        score = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], -1)[..., 0]
        noise = jax.vmap(lambda key: gumbel(key, tokens.shape[1:]))(_fold(keys, 2 * i + 2))
        score += choice_temperature * (1 - (i + 1) / steps) * noise
        masked = tokens < 0
        remasked = jnp.minimum(masked.sum(1) - 1, jnp.floor(count * after).astype(jnp.int32))
        remasked = jnp.where(i + 1 < steps, jnp.maximum(remasked, 1), 0)
        return jnp.where(masked & ~_lowest(score, masked, remasked), drawn, tokens), None

    return jax.lax.scan(step, tokens, jnp.arange(steps))[0]


def _lowest(
    values: Float[Array, "B S"], among: Bool[Array, "B S"], count: Int[Array, "B"]
) -> Bool[Array, "B S"]:
    """A mask of the `count` lowest values of each row among those where `among` is true."""
    order = jnp.argsort(jnp.where(among, values, jnp.inf), axis=1)
    rank = jnp.argsort(order, axis=1)
    return rank < count[:, None]


def _times(keys: Key[Array, "B"], tokens: Int[Array, "B S"]) -> Float[Array, "B S"]:
    """The masked share at which each token is unmasked; above it the token is masked."""
    return jax.vmap(lambda key: uniform(key, tokens.shape[1:]))(_fold(keys, 0))


def _fold(keys: Key[Array, "B"], data: Array | int) -> Key[Array, "B"]:
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)
