"""An encoder of an image's patches, and a decoder of a text that attends to it: captioning.

The encoder reads patches as a vision transformer does (Dosovitskiy et al. 2020, section 3.1), and
the decoder writes as that of a translation model (Vaswani et al. 2017), as in Liu et al. 2021
(CPTR: Full Transformer Network for Image Captioning).
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from genjax.checks import Depth, Kernel, OtherWidth, Rate, Weight, Width, require
from genjax.networks import encoder_decoder
from genjax.nn.layers import Linear, plus, space_to_depth

RULES = encoder_decoder.RULES


class Network(encoder_decoder.Network):
    """Predicts the logits of the next token of a text, given an image.

    Patches and tokens have learned positions.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        source_shape: tuple[int, int, int],
        *,
        patch_size: Kernel = 4,
        width: Width = 128,
        depth: Depth = 4,
        decoder_depth: OtherWidth = 0,
        heads: Width = 4,
        hidden: OtherWidth = 0,
        activation: str = "gelu",
        norm: str = "layer",
        bias: bool = True,
        tied: bool = True,
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        init_std: Weight = 0.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          vocabulary_size: number of values of a token, V.
          length: the largest number of positions of a text.
          source_shape: of the images, (H, W, C).
          patch_size: side of the square patches, which divides H and W.
          width: D; see `encoder_decoder.Network`, also for the arguments not listed here.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an option is out of range, or the patches do not divide the image.
        """
        height, wide, channels = source_shape
        fits = height % patch_size == wide % patch_size == 0
        require(fits, "patch_size", patch_size, f"a divisor of the image's sides {height}, {wide}")
        super().__init__(
            vocabulary_size,
            length,
            height // patch_size * (wide // patch_size),
            width=width,
            depth=depth,
            decoder_depth=decoder_depth,
            heads=heads,
            hidden=hidden,
            activation=activation,
            norm=norm,
            positions="learned",  # others do not know that patches lie in a grid
            bias=bias,
            tied=tied,
            dropout=dropout,
            attention_dropout=attention_dropout,
            init_std=init_std,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.patch = Linear(patch_size**2 * channels, width, dtype=dtype, rngs=rngs)
        self.patch_size = patch_size

    def embedded_source(self, source: Float[Array, "B H W C"]) -> Float[Array, "B S D"]:
        """The vectors of the patches of images in [-1, 1], row by row, with their positions."""
        h = self.patch(space_to_depth(source, self.patch_size))
        return plus(h.reshape(len(source), -1, self.width), self.positions_source[...])
