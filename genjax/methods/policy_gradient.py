"""Policy gradients of answers that a language model draws: pure functions of arrays.

N answers have T tokens each; a mask is 1 at the tokens that were drawn, and 0 in padding, which may
lie anywhere. Answers to the same prompt are a group and lie side by side. Log-probabilities are in
nats, and no function here takes a gradient of its own: the caller says what is constant.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

AVERAGES = ("sum", "length", "sequence", "token")


def leave_one_out(reward: Float[Array, "N"], group: int) -> Float[Array, "N"]:
    """The reward less the mean of the others in its group of `group` (Ahmadian et al. 2024, RLOO).

    The baseline does not depend on the answer, so that the gradient stays unbiased.
    """
    rewards = reward.reshape(-1, group)
    others = (rewards.sum(1, keepdims=True) - rewards) / (group - 1)
    return (rewards - others).reshape(-1)


def group_relative(
    reward: Float[Array, "N"], group: int, scale: bool, epsilon: float = 1e-6
) -> Float[Array, "N"]:
    """The reward less the mean of its group (Shao et al. 2024, section 4.1.2).

    Args:
      reward: of each answer.
      group: answers in a group.
      scale: whether to divide by the group's standard deviation, with Bessel's correction. That
        favours prompts whose rewards hardly differ, and the gradient is no longer that of the mean
        reward (Liu et al. 2025, section 3.1).
      epsilon: added to the standard deviation.
    """
    rewards = reward.reshape(-1, group)
    advantage = rewards - rewards.mean(1, keepdims=True)
    if scale:
        advantage = advantage / (rewards.std(1, ddof=1, keepdims=True) + epsilon)
    return advantage.reshape(-1)


def gae(
    reward: Float[Array, "N T"],
    value: Float[Array, "N T"],
    mask: Bool[Array, "N T"],
    discount: float,
    decay: float,
) -> Float[Array, "N T"]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16); zero outside of the mask.

    Args:
      reward: of each token.
      value: the expected rest of the rewards before each token is drawn.
      mask: the tokens that were drawn; an answer ends with its last one.
      discount: gamma.
      decay: lambda.
    """

    def step(carry: tuple[Array, Array], token: tuple[Array, ...]) -> tuple[tuple, Array]:
        next_value, next_advantage = carry
        r, v, drawn = token
        advantage = r + discount * next_value - v + discount * decay * next_advantage
        carry = jnp.where(drawn, v, next_value), jnp.where(drawn, advantage, next_advantage)
        return carry, jnp.where(drawn, advantage, 0.0)

    start = (jnp.zeros(len(reward)),) * 2
    _, advantage = jax.lax.scan(step, start, (reward.T, value.T, mask.T), reverse=True)
    return advantage.T


def last_of(mask: Bool[Array, "N T"]) -> Bool[Array, "N T"]:
    """Whether each token is the last one of its row's mask."""
    after = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    return mask & (after == 1)


def whiten(x: Float[Array, "N T"], mask: Bool[Array, "N T"]) -> Float[Array, "N T"]:
    """Shifts and scales the values under the mask to mean 0 and variance 1; zero elsewhere."""
    count = mask.sum()
    centred = jnp.where(mask, x - jnp.where(mask, x, 0).sum() / count, 0.0)
    variance = jnp.square(centred).sum() / jnp.maximum(count - 1, 1)
    return centred * jax.lax.rsqrt(variance + 1e-8)


def policy_loss(
    log_ratio: Float[Array, "N T"], advantage: Float[Array, "N T"], low: float, high: float
) -> Float[Array, "N T"]:
    """Minus the clipped objective of each token (Schulman et al. 2017, eq. 7).

    Where nothing is clipped, its gradient at a ratio of 1 is that of -advantage * log p, which is
    REINFORCE.

    Args:
      log_ratio: log p of each token less its log p when it was drawn.
      advantage: of each token.
      low: the ratio counts from 1 - `low`,
      high: up to 1 + `high` (Yu et al. 2025, section 3.1, for two ends).
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - low, 1 + high)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def value_loss(
    value: Float[Array, "N T"],
    old: Float[Array, "N T"],
    target: Float[Array, "N T"],
    clip: float,
) -> Float[Array, "N T"]:
    """Half the squared error, at least that of a value within `clip` of the old one.

    It is the loss of OpenAI's PPO2 (Engstrom et al. 2020, section 3, item 1).
    """
    clipped = old + jnp.clip(value - old, -clip, clip)
    return 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))


def k3(log_ratio: Float[Array, "N T"]) -> Float[Array, "N T"]:
    """An estimate of KL(p || reference) that is never negative (Schulman 2020, "k3").

    Its mean over tokens drawn from p is the divergence of a token's distribution. Its gradient,
    without that of the draws, is that of the other divergence, KL(reference || p); multiplied by
    the ratio of p to what the tokens were drawn from, it is the right one (DeepSeek-V3.2, section
    3.1). Neither knows that a token also changes the divergence of the tokens after it.

    Args:
      log_ratio: log p of each token less its log p under the reference.
    """
    return jnp.expm1(-log_ratio) + log_ratio


def weights(
    mask: Bool[Array, "N T"], average: str, length: int
) -> tuple[Float[Array, "N T"], Float[Array, "N"]]:
    """How much each token counts, and what the weighted sum of all tokens is divided by.

    Args:
      mask: the tokens that were drawn.
      average: "sum", the tokens of an answer are added, as in log p of the whole answer, and the
        mean is over answers; "length", their sum is divided by `length` (Dr. GRPO, Liu et al. 2025,
        section 3.2); "sequence", they are averaged (GRPO, Shao et al. 2024, eq. 3), so that tokens
        of long answers count less; "token", all tokens of all answers count alike (DAPO, Yu et al.
        2025, eq. 8).
      length: the most tokens of an answer.

    Returns:
      (weights, divisors): the loss is (weights * losses).sum() / divisors.sum(). A row without
      tokens does not count.
    """
    tokens = mask.sum(1).astype(jnp.float32)
    each = {"sum": 1.0, "length": 1.0 / length, "token": 1.0}
    weight = mask * (
        1.0 / jnp.maximum(tokens, 1.0)[:, None] if average == "sequence" else each[average]
    )
    return weight, tokens if average == "token" else mask.any(1).astype(jnp.float32)
