"""GAN losses on the discriminator's logits, and penalties on its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu, softplus
from jaxtyping import Array, Float

Logits = Float[Array, "N"]


class Loss(NamedTuple):
    """The losses of both players, as functions of the logits (real, fake) [N].

    `threshold` is the logit that separates real from fake; None if only differences of logits have
    a meaning.
    """

    discriminator: Callable[[Logits, Logits], Float[Array, ""]]
    generator: Callable[[Logits, Logits], Float[Array, ""]]
    threshold: float | None = 0.0


def _cross_entropy(real: Logits, fake: Logits) -> Float[Array, ""]:
    return softplus(-real).mean() + softplus(fake).mean()


LOSSES: dict[str, Loss] = {
    # Goodfellow et al. 2014, eq. 1, with D = sigmoid(logit).
    "minimax": Loss(_cross_entropy, lambda real, fake: -softplus(fake).mean()),
    # Goodfellow et al. 2014, section 3: the generator ascends log D(G(z)).
    "non_saturating": Loss(_cross_entropy, lambda real, fake: softplus(-fake).mean()),
    # Mao et al. 2017, eq. 9: a = 0, b = c = 1.
    "least_squares": Loss(
        lambda real, fake: 0.5 * (jnp.square(real - 1).mean() + jnp.square(fake).mean()),
        lambda real, fake: 0.5 * jnp.square(fake - 1).mean(),
        threshold=0.5,
    ),
    # Arjovsky et al. 2017, eq. 2 and 3.
    "wasserstein": Loss(
        lambda real, fake: fake.mean() - real.mean(),
        lambda real, fake: -fake.mean(),
        threshold=None,
    ),
    # Miyato et al. 2018, eq. 16 and 17.
    "hinge": Loss(
        lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(),
        lambda real, fake: -fake.mean(),
    ),
    # Relativistic pairing (Jolicoeur-Martineau 2019; Huang et al. 2024, eq. 2).
    "relativistic": Loss(
        lambda real, fake: softplus(fake - real).mean(),
        lambda real, fake: softplus(real - fake).mean(),
        threshold=None,
    ),
}


def interpolate(
    real: Float[Array, "B *shape"], fake: Float[Array, "B *shape"], key: Array, packing: int = 1
) -> Float[Array, "B *shape"]:
    """A uniform point between each real and fake example (Gulrajani et al. 2017, algorithm 1).

    The members of a pack share their alpha, because a pack is one input of the discriminator.
    """
    alpha = jax.random.uniform(key, (real.shape[0] // packing,))
    alpha = jnp.repeat(alpha, packing).reshape(-1, *(1,) * (real.ndim - 1))
    return real + alpha * (fake - real)


def unit_norm_penalty(slope: Float[Array, "N D"]) -> Float[Array, ""]:
    """`E (|slope| - 1)^2` (Gulrajani et al. 2017, eq. 3), with gradient 0 where slope is 0."""
    squared = jnp.square(slope).sum(-1)
    norm = jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
    return jnp.square(jnp.where(squared > 0, norm, 0.0) - 1.0).mean()


def zero_penalty(slope: Float[Array, "N D"]) -> Float[Array, ""]:
    """`1/2 E |slope|^2` (Mescheder et al. 2018, eq. 9 and 10, for gamma = 1)."""
    return 0.5 * jnp.square(slope).sum(-1).mean()
