"""The U-Net of EDM2 (Karras et al. 2024, config G, figure 21) and its estimate of uncertainty."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.checks import Blocks, Positive, Rate, Share, Width
from genjax.config import ConfigError, require
from genjax.networks.unet import HIDDEN, STREAM
from genjax.nn.attention import attention
from genjax.nn.layers import dropout, times, upsample_nearest
from genjax.nn.magnitude import (
    MPConv,
    MPEmbed,
    MPFourier,
    MPLinear,
    downsample_average,
    mp_cat,
    mp_silu,
    mp_sum,
    normalise,
    pixel_norm,
)
from genjax.parallel.layout import EXAMPLES, UNITS, laid
from genjax.parallel.rules import Rules, fsdp, replicate, tensor

# Column-parallel into a block, row-parallel out of it; every other matrix over fsdp alone.
RULES: Rules = (
    (r"(conv1|query|key|value)/mp_kernel$", tensor(-1)),
    (r"(conv2|out)/mp_kernel$", tensor(-2)),
    (r"mp_kernel$", fsdp),
    (r"(gain|frequencies|phases)$", replicate),
)

project = normalise  # applied to the parameters after each update


class Options(NamedTuple):
    """The options that all blocks share.

    Attributes:
      embedding: width of the embedding.
      head_size: channels of an attention head.
      dropout: rate inside the residual branch.
      residual_balance: weight t of the residual branch in its `mp_sum`, 0 ... 1.
      attention_balance: weight t of self-attention in its `mp_sum`, 0 ... 1.
      clip: the largest magnitude of a block's output.
    """

    embedding: int
    head_size: int
    dropout: float
    residual_balance: float
    attention_balance: float
    clip: float


class Place(NamedTuple):
    """The role of a block in the U-Net.

    Attributes:
      cin: input channels, including those of the skip connection.
      cout: output channels.
      decodes: whether it belongs to the decoder.
      resample: "down" or "up" if it resamples its input first, else "".
      skip: whether its input includes a skip connection.
      attends: whether it has self-attention.
    """

    cin: int
    cout: int
    decodes: bool = False
    resample: str = ""
    skip: bool = False
    attends: bool = False


def plan(
    height: int,
    channels: int,
    multipliers: tuple[int, ...],
    blocks: int,
    attention: tuple[int, ...],
) -> tuple[list[Place], list[Place]]:
    """The blocks of the encoder after its first convolution, and of the decoder, in order.

    The outputs of that convolution and of all blocks of the encoder are skip connections; the
    decoder takes the last one first.
    """
    widths = [channels * m for m in multipliers]
    encoder: list[Place] = []
    decoder: list[Place] = []
    width = widths[0]
    for level, out in enumerate(widths):
        if level:
            encoder.append(Place(width, width, resample="down"))
        for _ in range(blocks):
            encoder.append(Place(width, out, attends=height >> level in attention))
            width = out
    skips = [widths[0], *(place.cout for place in encoder)]
    for level, out in reversed(list(enumerate(widths))):
        if level == len(widths) - 1:
            decoder.append(Place(width, width, decodes=True, attends=True))
            decoder.append(Place(width, width, decodes=True))
        else:
            decoder.append(Place(width, width, decodes=True, resample="up"))
        for _ in range(blocks + 1):
            cin, attends = width + skips.pop(), height >> level in attention
            decoder.append(Place(cin, out, decodes=True, skip=True, attends=attends))
            width = out
    return encoder, decoder


class Attention(nnx.Module):
    """Cosine self-attention over the pixels: queries, keys and values of unit magnitude."""

    def __init__(self, channels: int, heads: int, dtype, rngs: nnx.Rngs):
        """Makes the layers."""
        self.query = MPLinear(channels, channels, dtype=dtype, rngs=rngs)
        self.key = MPLinear(channels, channels, dtype=dtype, rngs=rngs)
        self.value = MPLinear(channels, channels, dtype=dtype, rngs=rngs)
        self.out = MPLinear(channels, channels, dtype=dtype, rngs=rngs)
        self.heads = heads

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Returns the attention's output, without the sum with x."""
        B, H, W, C = x.shape
        rows = x.reshape(B, H * W, C)
        q, k, v = (
            pixel_norm(layer(rows).reshape(B, H * W, self.heads, C // self.heads))
            for layer in (self.query, self.key, self.value)
        )
        return self.out(attention(q, k, v).reshape(B, H, W, C))


class Block(nnx.Module):
    """A residual branch scaled by the embedding in its middle, then self-attention.

    A block of the encoder first normalises each pixel, for both its branch and its sum; a block of
    the decoder has no norm.
    """

    def __init__(self, place: Place, options: Options, dtype, rngs: nnx.Rngs):
        """Makes the layers; the embedding's `gain` starts at zero."""
        cin, cout, layer_options = place.cin, place.cout, {"dtype": dtype, "rngs": rngs}
        self.shortcut = MPLinear(cin, cout, **layer_options) if cin != cout else None
        self.conv1 = MPConv(cin if place.decodes else cout, cout, **layer_options)
        self.modulation = MPLinear(options.embedding, cout, rngs=rngs)
        self.gain = nnx.Param(jnp.zeros((), jnp.float32))
        self.conv2 = MPConv(cout, cout, **layer_options)
        heads = cout // options.head_size
        self.attention = Attention(cout, heads, **layer_options) if place.attends else None
        self.place, self.options = place, options

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        embedding: Float[Array, "B E"],
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B h w F"]:
        """Applies the block; h and w are H and W resampled."""
        place, options = self.place, self.options
        if place.resample:
            x = downsample_average(x) if place.resample == "down" else upsample_nearest(x)
        if not place.decodes:
            x = pixel_norm(self._apply_shortcut(x))
        y = laid(self.conv1(mp_silu(x)), *HIDDEN)
        scale = 1 + laid(self.modulation(embedding, self.gain[...]), EXAMPLES, UNITS)
        y = mp_silu(times(y, scale[:, None, None, :]))
        y = self.conv2(dropout(y, options.dropout, key, train))
        x = mp_sum(self._apply_shortcut(x) if place.decodes else x, y, options.residual_balance)
        if self.attention is not None:
            x = mp_sum(x, self.attention(x), options.attention_balance)
        return laid(jnp.clip(x, -options.clip, options.clip), *STREAM)

    def _apply_shortcut(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W F"]:
        return x if self.shortcut is None else self.shortcut(x)


def _check_numbers(
    sizes: dict[str, int], balances: dict[str, float], dropout: float, clip: float
) -> None:
    """Raises ConfigError if a number is out of range."""
    for name, size in sizes.items():
        require(size >= 1, name, size, "1 or more")
    for name, t in balances.items():
        require(0 <= t <= 1, name, t, "a number from 0 to 1")
    require(0 <= dropout < 1, "dropout", dropout, "0 <= rate < 1")
    require(clip > 0, "clip", clip, "a number above 0")


def _check_levels(
    shape: tuple[int, int, int],
    levels: int,
    attention: tuple[int, ...],
    head_size: int,
    places: list[Place],
) -> None:
    """Raises ConfigError if images of `shape` cannot have these levels, or heads do not fit."""
    height, width, _ = shape
    factor = 2 ** (levels - 1)
    if height % factor or width % factor:
        raise ConfigError(
            f"images of {height} x {width} cannot be halved {levels - 1} times, which {levels} "
            f"multipliers need: both sides must be multiples of {factor}. Set the images' size "
            "or multipliers."
        )
    heights = [height >> level for level in range(levels)]
    if unknown := set(attention) - set(heights):
        raise ConfigError(
            f"attention={attention!r}: there is no level of height {sorted(unknown)}; the levels "
            f"are {heights}."
        )
    indivisible = {place.cout for place in places if place.attends and place.cout % head_size}
    if indivisible:
        raise ConfigError(
            f"head_size={head_size} does not divide the channels {sorted(indivisible)} of a level "
            "with attention, which the lowest level always has. Set head_size or channels."
        )


class Network(nnx.Module):
    """Predicts an image from a noisy one, its noise level and, optionally, its label.

    The published sizes have channels 128 (XS), 192 (S), 256 (M), 320 (L), 384 (XL) and 448 (XXL);
    their other options are the defaults. Layers normalise their weights before they use them;
    `magnitude.normalise` is what a training step does to the stored weights.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        out_channels: int,
        num_classes: int = 0,
        *,
        vector_width: int = 0,
        channels: Width = 192,
        multipliers: tuple[Width, ...] = (1, 2, 3, 4),
        blocks: Blocks = 3,
        attention: tuple[Width, ...] = (16, 8),
        head_size: Width = 64,
        dropout: Rate = 0.0,
        label_balance: Share = 0.5,
        residual_balance: Share = 0.3,
        attention_balance: Share = 0.3,
        concat_balance: Share = 0.5,
        clip: Positive = 256.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; its first output is zero.

        Args:
          shape: of an input image, (H, W, C).
          out_channels: channels of the output.
          num_classes: number of labels; 0: unconditional.
          vector_width: length of `vector`; 0: the network takes no vector.
          channels: width of the first level, and number of Fourier features.
          multipliers: width of each level, divided by `channels`; each level after the first halves
            the resolution. The embedding is as wide as the widest level.
          blocks: blocks per level (one more in the decoder), not counting those that resample.
          attention: heights of the feature maps at which blocks have self-attention. The first
            block of the decoder always has it.
          head_size: channels of an attention head.
          dropout: rate inside residual branches.
          label_balance: between the embeddings of noise (0) and class (1), and between their sum
            (0) and the embedding of the vector (1).
          residual_balance: between the input of a block (0) and its residual branch (1).
          attention_balance: between the input of self-attention (0) and its output (1).
          concat_balance: between the decoder's features (0) and skip connections (1).
          clip: the largest magnitude of an activation between blocks.
          dtype: compute type of all but the embedding, which is float32.
          rngs: for the initial parameters.

        Raises:
          ConfigError: sizes are out of range, or do not fit each other.
        """
        sizes = {"height": shape[0], "width": shape[1], "out_channels": out_channels}
        sizes |= {"channels": channels, "number of multipliers": len(multipliers)}
        sizes |= {"blocks": blocks, "head_size": head_size}
        sizes |= {f"multipliers[{i}]": m for i, m in enumerate(multipliers)}
        balances = {"label_balance": label_balance, "residual_balance": residual_balance}
        balances |= {"attention_balance": attention_balance, "concat_balance": concat_balance}
        _check_numbers(sizes, balances, dropout, clip)
        require(num_classes >= 0, "num_classes", num_classes, "0 or more")
        require(vector_width >= 0, "vector_width", vector_width, "0 or more")
        encoder, decoder = plan(shape[0], channels, multipliers, blocks, attention)
        _check_levels(shape, len(multipliers), attention, head_size, encoder + decoder)
        width = channels * max(multipliers)
        options = Options(width, head_size, dropout, residual_balance, attention_balance, clip)
        first = channels * multipliers[0]
        self.fourier = MPFourier(first, rngs=rngs)
        self.noise = MPLinear(first, width, rngs=rngs)
        self.label = MPEmbed(num_classes, width, rngs=rngs) if num_classes else None
        self.vector = MPLinear(vector_width, width, rngs=rngs) if vector_width else None
        self.stem = MPConv(shape[2] + 1, first, dtype=dtype, rngs=rngs)
        self.encoder, self.decoder = (
            nnx.Dict({str(i): Block(p, options, dtype, rngs) for i, p in enumerate(places)})
            for places in (encoder, decoder)
        )
        self.head = MPConv(decoder[-1].cout, out_channels, dtype=dtype, rngs=rngs)
        self.gain = nnx.Param(jnp.zeros((), jnp.float32))
        self.label_balance, self.concat_balance = label_balance, concat_balance
        self.dtype = dtype

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, "B"],
        label: Int[Array, "B"] | None = None,
        *,
        vector: Float[Array, "B V"] | None = None,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B H W D"]:
        """Applies the network.

        Args:
          x: noisy images, of unit magnitude.
          t: 1000 c_noise, where c_noise = ln(sigma) / 4 in EDM.
          label: classes; `num_classes` is the null class, and None means the null class for all.
          vector: numbers of about unit magnitude. None if the network has no vector.
          key: for dropout; needed in training if the rate is above 0.
          train: whether dropout is on.

        Returns:
          The prediction, float32.

        Raises:
          ConfigError: a label is given, but the network has no classes.
          ValueError: a vector is missing, or the network was built without one.
        """
        embedding = self._embedding(t, label, vector)
        x = x.astype(self.dtype)
        h = self.stem(jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1))
        h = laid(h, *STREAM)
        skips = [h]
        for i in range(len(self.encoder)):
            block_key = None if key is None else jax.random.fold_in(key, i)
            h = self.encoder[str(i)](h, embedding, block_key, train)
            skips.append(h)
        for i in range(len(self.decoder)):
            block_key = None if key is None else jax.random.fold_in(key, len(self.encoder) + i)
            block = self.decoder[str(i)]
            h = mp_cat(h, skips.pop(), self.concat_balance) if block.place.skip else h
            h = block(h, embedding, block_key, train)
        return laid(self.head(h, self.gain[...]).astype(jnp.float32), *STREAM)

    def _embedding(
        self,
        t: Float[Array, "B"],
        label: Int[Array, "B"] | None,
        vector: Float[Array, "B V"] | None,
    ) -> Float[Array, "B E"]:
        """The embedding of the noise level, the class and the vector, float32."""
        embedding = self.noise(self.fourier(t.astype(jnp.float32) / 1000))
        if self.label is None:
            if label is not None:
                raise ConfigError(
                    "label: the network has num_classes=0, so None was expected. Set num_classes."
                )
        else:
            class_embedding = jnp.zeros_like(embedding) if label is None else self.label(label)
            embedding = mp_sum(embedding, class_embedding, self.label_balance)
        if (vector is None) != (self.vector is None):
            problem = (
                "missing, but the network was built with vector_width > 0"
                if vector is None
                else f"of shape {vector.shape}, but the network was built with vector_width=0"
            )
            raise ValueError(f"vector: {problem}.")
        if vector is not None:
            embedding = mp_sum(embedding, self.vector(vector), self.label_balance)
        return laid(mp_silu(embedding), EXAMPLES, None)


class Uncertainty(nnx.Module):
    """u(sigma), the logarithm of the expected loss at a noise level (eq. 21)."""

    def __init__(self, channels: int = 128, *, rngs: nnx.Rngs):
        """Makes `channels` Fourier features and a linear layer without a bias.

        Raises:
          ConfigError: `channels` is below 1.
        """
        require(channels >= 1, "channels", channels, "1 or more")
        self.fourier = MPFourier(channels, rngs=rngs)
        self.linear = MPLinear(channels, 1, rngs=rngs)

    def __call__(
        self, t: Float[Array, "B"], *, key: jax.Array | None = None, train: bool = False
    ) -> Float[Array, "B"]:
        """Returns u of t = 1000 c_noise, float32; `key` and `train` have no effect."""
        del key, train
        return self.linear(self.fourier(t.astype(jnp.float32) / 1000))[:, 0]
