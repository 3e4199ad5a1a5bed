"""The InceptionV3 network of the Fréchet Inception distance.

This is the graph of 2015-12-05 that FID (Heusel et al. 2017) and the Inception Score (Salimans et
al. 2016) use. It differs from the network of the paper (Szegedy et al. 2015): average pooling
ignores the padding, the last block has max pooling, there are 1,008 classes, and images are resized
with TensorFlow 1's bilinear rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from genjax.config import ConfigError
from genjax.nn.exact import ExactConv, exact_product, fold_batch_norm
from genjax.parallel.rules import Rules, replicate

SIZE = 299  # height and width of its input images
FEATURES = 2048
CLASSES = 1008
EPS = 1e-3  # of its batch norms

RULES: Rules = ((r"(kernel|bias)$", replicate),)


class Conv(NamedTuple):
    """One convolution with ReLU: its name within its block, output channels, kernel and stride.

    Padding is "SAME" at stride 1, and none at stride 2 and in parts of the stem.
    """

    name: str
    features: int
    height: int = 1
    width: int = 1
    stride: int = 1
    padding: str = "SAME"


class Pool(NamedTuple):
    """3 x 3 pooling: "average", which ignores the padding; "max"; or "halve" (max, stride 2)."""

    kind: str


class Fork(NamedTuple):
    """Two convolutions of the same input, concatenated."""

    left: Conv
    right: Conv


Chain = tuple[Conv | Pool | Fork, ...]  # one branch of a block


def _a(pool_features: int) -> tuple[Chain, ...]:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, 5, 5)),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, 3, 3),
            Conv("branch3x3dbl_3", 96, 3, 3),
        ),
        (Pool("average"), Conv("branch_pool", pool_features)),
    )


def _b() -> tuple[Chain, ...]:
    return (
        (Conv("branch3x3", 384, 3, 3, 2, "VALID"),),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, 3, 3),
            Conv("branch3x3dbl_3", 96, 3, 3, 2, "VALID"),
        ),
        (Pool("halve"),),
    )


def _c(inner: int) -> tuple[Chain, ...]:
    return (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", inner),
            Conv("branch7x7_2", inner, 1, 7),
            Conv("branch7x7_3", 192, 7, 1),
        ),
        (
            Conv("branch7x7dbl_1", inner),
            Conv("branch7x7dbl_2", inner, 7, 1),
            Conv("branch7x7dbl_3", inner, 1, 7),
            Conv("branch7x7dbl_4", inner, 7, 1),
            Conv("branch7x7dbl_5", 192, 1, 7),
        ),
        (Pool("average"), Conv("branch_pool", 192)),
    )


def _d() -> tuple[Chain, ...]:
    return (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, 3, 3, 2, "VALID")),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, 1, 7),
            Conv("branch7x7x3_3", 192, 7, 1),
            Conv("branch7x7x3_4", 192, 3, 3, 2, "VALID"),
        ),
        (Pool("halve"),),
    )


def _e(pool: str) -> tuple[Chain, ...]:
    def fork(name: str) -> Fork:
        return Fork(Conv(f"{name}a", 384, 1, 3), Conv(f"{name}b", 384, 3, 1))

    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), fork("branch3x3_2")),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, 3, 3),
            fork("branch3x3dbl_3"),
        ),
        (Pool(pool), Conv("branch_pool", 192)),
    )


# Names are those of the published weights, so that conversion needs no table. The stem is a block
# with one branch and an empty name.
STEM: Chain = (
    Conv("Conv2d_1a_3x3", 32, 3, 3, 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, 3, 3, 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, 3, 3),
    Pool("halve"),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, 3, 3, 1, "VALID"),
    Pool("halve"),
)
BLOCKS: dict[str, tuple[Chain, ...]] = {
    "": (STEM,),
    **{"Mixed_5b.": _a(32), "Mixed_5c.": _a(64), "Mixed_5d.": _a(64)},
    "Mixed_6a.": _b(),
    **{"Mixed_6b.": _c(128), "Mixed_6c.": _c(160), "Mixed_6d.": _c(160), "Mixed_6e.": _c(192)},
    "Mixed_7a.": _d(),
    **{"Mixed_7b.": _e("average"), "Mixed_7c.": _e("max")},
}


def _pool(kind: str, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    window = (1, 3, 3, 1)
    if kind == "average":
        total = lax.reduce_window(x, 0.0, lax.add, window, (1, 1, 1, 1), "SAME")
        ones = np.ones((1, *x.shape[1:3], 1), np.float32)
        return total / lax.reduce_window(ones, 0.0, lax.add, window, (1, 1, 1, 1), "SAME")
    stride, padding = (2, "VALID") if kind == "halve" else (1, "SAME")
    return lax.reduce_window(x, -jnp.inf, lax.max, window, (1, stride, stride, 1), padding)


class Output(NamedTuple):
    """The network's output.

    Attributes:
      features: average of the last block over the positions (`2048`, pool3).
      logits_unbiased: class logits without the last layer's bias, as in the Inception Score of
        Salimans et al. 2016.
      logits: class logits with the bias.
    """

    features: Float[Array, "B D"]
    logits_unbiased: Float[Array, "B K"]
    logits: Float[Array, "B K"]


class Inception(nnx.Module):
    """The network with batch norms folded into the convolutions; for inference only."""

    def __init__(self, rngs: nnx.Rngs):
        """Makes the convolutions `convs/<name>` and the last layer `head`."""
        convs = {}
        width = 3

        def add(block: str, cin: int, conv: Conv) -> int:
            convs[_key(block + conv.name)] = ExactConv(
                cin,
                conv.features,
                (conv.height, conv.width),
                stride=conv.stride,
                padding=conv.padding,
                rngs=rngs,
            )
            return conv.features

        for block, chains in BLOCKS.items():
            outputs = []
            for chain in chains:
                cout = width
                for item in chain:
                    if isinstance(item, Fork):
                        cout = add(block, cout, item.left) + add(block, cout, item.right)
                    elif isinstance(item, Conv):
                        cout = add(block, cout, item)
                outputs.append(cout)
            width = sum(outputs)
        self.convs = nnx.Dict(convs)
        self.head = ExactConv(width, CLASSES, (1, 1), rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B 299 299 3"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Output:
        """Applies the network to images from `resize` and `normalize`; always in inference mode."""
        del key, train

        def conv(block: str, item: Conv, x: Array) -> Array:
            return nnx.relu(self.convs[_key(block + item.name)](x))

        def run(block: str, chain: Chain, x: Array) -> Array:
            for item in chain:
                if isinstance(item, Pool):
                    x = _pool(item.kind, x)
                elif isinstance(item, Fork):
                    sides = [conv(block, side, x) for side in item]
                    x = jnp.concatenate(sides, axis=-1)
                else:
                    x = conv(block, item, x)
            return x

        for block, chains in BLOCKS.items():
            x = jnp.concatenate([run(block, chain, x) for chain in chains], axis=-1)
        features = x.mean((1, 2))
        unbiased = exact_product(features, self.head.kernel[0, 0])
        return Output(features, unbiased, unbiased + self.head.bias[...])


def _key(name: str) -> str:
    return name.replace(".", "_")


def resize(images: Float[Array, "B H W C"], size: int = SIZE) -> Float[Array, "B S S C"]:
    """TensorFlow 1's `resize_bilinear` with `align_corners=False`.

    Output pixel i lies at position i * (H / S) of the input, without the half-pixel shift of
    centres. It interpolates the two pixels around it, without antialiasing at any scale.
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        length = x.shape[axis]
        position = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = position.astype(np.int32)
        high = np.minimum(low + 1, length - 1)
        shape = [1] * x.ndim
        shape[axis] = size
        weight = (position - low.astype(np.float32)).reshape(shape)
        first = jnp.take(x, low, axis=axis)
        x = first + (jnp.take(x, high, axis=axis) - first) * weight
    return x


def normalize(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Maps pixels in 0 ... 255 to the network's input: (x - 128) / 128."""
    return (x - 128.0) / 128.0


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Converts the state dict of torch-fidelity's port to parameters of `Inception`.

    Args:
      state: `<layer>.conv.weight`, `<layer>.bn.*`, `fc.weight` and `fc.bias`.

    Raises:
      ConfigError: a tensor is missing.
    """
    try:
        layers = [
            name.removesuffix(".conv.weight") for name in state if name.endswith("conv.weight")
        ]
        convs = {}
        for layer in layers:
            norm = {
                part: state[f"{layer}.bn.{part}"]
                for part in ("weight", "bias", "running_mean", "running_var")
            }
            convs[_key(layer)] = fold_batch_norm(state[f"{layer}.conv.weight"], norm, EPS)
        kernel = np.asarray(state["fc.weight"], np.float32).T[None, None]
        head = {"kernel": kernel, "bias": np.asarray(state["fc.bias"], np.float32)}
    except KeyError as error:
        raise ConfigError(
            f"the weights of Inception lack {error}: expected the state dict of torch-fidelity's "
            "weights-inception-2015-12-05-6726825d.pth."
        ) from None
    return {"convs": convs, "head": head}
