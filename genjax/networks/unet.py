"""The U-Net of DDPM (Ho et al. 2020, appendix B).

With a context, each self-attention is followed by cross-attention (Rombach et al. 2022, section
3.3).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from genjax.checks import Blocks, Kernel, Rate, Width
from genjax.config import ConfigError, require
from genjax.nn.attention import across, attention
from genjax.nn.layers import (
    Conv,
    Embed,
    GroupNorm,
    Linear,
    depth_to_space,
    dropout,
    plus,
    sinusoidal_embedding,
    space_to_depth,
    upsample_nearest,
    zeros,
)
from genjax.parallel.layout import EXAMPLES, UNITS, laid
from genjax.parallel.rules import Rules, fsdp, replicate, tensor

# How the mesh splits [B, H, W, C]: from block to block, and inside one.
STREAM, HIDDEN = (EXAMPLES, None, None, None), (EXAMPLES, None, None, UNITS)

# Column-parallel into a block, row-parallel out of it; every other matrix over fsdp alone.
RULES: Rules = (
    (r"(conv1|query|key|value)/kernel$", tensor(-1)),
    (r"(conv2|out)/kernel$", tensor(-2)),
    (r"(kernel|embedding)$", fsdp),
    (r"(scale|bias)$", replicate),
)


class ResidualBlock(nnx.Module):
    """GroupNorm-SiLU-conv twice, with the time embedding added in between, and a shortcut."""

    def __init__(self, cin: int, cout: int, embedding: int, rate: float, dtype, rngs: nnx.Rngs):
        """Makes the layers; the second convolution starts at zero; embedding=0: no embedding."""
        self.norm1 = GroupNorm(cin)
        self.conv1 = Conv(cin, cout, dtype=dtype, rngs=rngs)
        self.time = Linear(embedding, cout, dtype=dtype, rngs=rngs) if embedding else None
        self.norm2 = GroupNorm(cout)
        self.conv2 = Conv(cout, cout, init=zeros, dtype=dtype, rngs=rngs)
        self.shortcut = Conv(cin, cout, 1, dtype=dtype, rngs=rngs) if cin != cout else None
        self.rate = rate

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        embedding: Float[Array, "B E"] | None = None,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B H W F"]:
        """Applies the block."""
        h = laid(self.conv1(self.norm1(x, nnx.silu)), *HIDDEN)
        if self.time is not None:
            time = laid(self.time(nnx.silu(embedding)), EXAMPLES, UNITS)
            h = plus(h, time[:, None, None, :])
        h = dropout(self.norm2(h, nnx.silu), self.rate, key, train)
        return laid(self.conv2(h) + (x if self.shortcut is None else self.shortcut(x)), *STREAM)


class Context(NamedTuple):
    """The context of cross-attention.

    Attributes:
      rows: sequences of vectors; None for no context.
      mask: true for the vectors that are seen; None for all.
    """

    rows: Float[Array, "B S E"] | None = None
    mask: Bool[Array, "B S"] | None = None


class CrossAttention(nnx.Module):
    """GroupNorm and attention from the pixels to a context, with a shortcut."""

    def __init__(self, channels: int, width: int, heads: int, dtype, rngs: nnx.Rngs):
        """Makes the layers for a context of `width`; the output projection starts at zero."""
        self.norm = GroupNorm(channels)
        self.query = Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.key = Linear(width, channels, dtype=dtype, rngs=rngs)
        self.value = Linear(width, channels, dtype=dtype, rngs=rngs)
        self.out = Linear(channels, channels, init=zeros, dtype=dtype, rngs=rngs)
        self.heads = heads

    def __call__(self, x: Float[Array, "B H W C"], context: Context) -> Float[Array, "B H W C"]:
        """Applies the block."""
        B, H, W, C = x.shape
        q, k, v = (
            y.reshape(B, -1, self.heads, C // self.heads)
            for y in (self.query(self.norm(x)), self.key(context.rows), self.value(context.rows))
        )
        mixed = across(q, k, v, context.mask)
        return laid(x + self.out(mixed.reshape(B, H * W, C)).reshape(B, H, W, C), *STREAM)


class AttentionBlock(nnx.Module):
    """GroupNorm and self-attention over the pixels, with a shortcut; then cross-attention."""

    def __init__(self, channels: int, heads: int, dtype, rngs: nnx.Rngs, context_width: int = 0):
        """Makes the layers; output projections start at zero."""
        self.norm = GroupNorm(channels)
        self.query = Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.key = Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.value = Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.out = Linear(channels, channels, init=zeros, dtype=dtype, rngs=rngs)
        self.heads = heads
        sizes = (channels, context_width, heads)
        self.cross = CrossAttention(*sizes, dtype, rngs) if context_width else None

    def __call__(
        self, x: Float[Array, "B H W C"], context: Context | None = None
    ) -> Float[Array, "B H W C"]:
        """Applies the block."""
        B, H, W, C = x.shape
        h = self.norm(x).reshape(B, H * W, C)
        q, k, v = (
            layer(h).reshape(B, H * W, self.heads, C // self.heads)
            for layer in (self.query, self.key, self.value)
        )
        x = x + self.out(attention(q, k, v).reshape(B, H * W, C)).reshape(B, H, W, C)
        x = laid(x, *STREAM)
        return x if self.cross is None else self.cross(x, context)


class Level(nnx.Module):
    """The blocks of one resolution of the encoder or decoder, and the resampling after them."""

    def __init__(
        self,
        channels: list[tuple[int, int]],
        embedding: int,
        heads: int,
        resample: Conv | None,
        rate: float,
        dtype,
        rngs: nnx.Rngs,
        context_width: int = 0,
    ):
        """Makes a residual block for each (in, out) of `channels`; heads=0: no attention."""
        self.blocks = nnx.Dict(
            {
                str(i): ResidualBlock(cin, cout, embedding, rate, dtype, rngs)
                for i, (cin, cout) in enumerate(channels)
            }
        )
        self.attention = nnx.Dict(
            {
                str(i): AttentionBlock(cout, heads, dtype, rngs, context_width)
                for i, (_, cout) in enumerate(channels if heads else [])
            }
        )
        self.resample, self.attends = resample, bool(heads)

    def block(
        self,
        i: int,
        x: Array,
        embedding: Array,
        context: Context,
        key: jax.Array | None,
        train: bool,
    ) -> Float[Array, "B H W F"]:
        """Applies residual block `i`, then its attention if this level has any."""
        x = self.blocks[str(i)](x, embedding, key, train)
        return self.attention[str(i)](x, context) if self.attends else x


def _check(
    resolution: int,
    patch_size: int,
    channels: int,
    multipliers: tuple[int, ...],
    attention: tuple[int, ...],
    heads: int,
) -> None:
    """Raises ConfigError if a network with these sizes cannot be built."""
    for name, value in {"patch_size": patch_size, "channels": channels, "heads": heads}.items():
        require(value >= 1, f"model.denoiser.{name}", value, "at least 1")
    valid = bool(multipliers) and min(multipliers) >= 1
    require(
        valid, "model.denoiser.multipliers", multipliers, "one or more numbers, each at least 1"
    )
    factor = patch_size * 2 ** (len(multipliers) - 1)
    if resolution % factor:
        raise ConfigError(
            f"model: images of {resolution} x {resolution} cannot be halved "
            f"{len(multipliers) - 1} times with patch_size={patch_size}: the size must be a "
            f"multiple of {factor}. Set dataset.image_size, model.denoiser.multipliers or "
            "model.denoiser.patch_size."
        )
    sizes = [resolution // patch_size >> level for level in range(len(multipliers))]
    if unknown := set(attention) - set(sizes):
        raise ConfigError(
            f"model.denoiser.attention={attention!r}: there is no level of size "
            f"{sorted(unknown)}; the levels are {sizes}."
        )
    if indivisible := [channels * m for m in multipliers if channels * m % heads]:
        raise ConfigError(
            f"model.denoiser.heads={heads} does not divide the channels of a level: {indivisible}."
        )


class Network(nnx.Module):
    """Predicts an image from a noisy one, its time and optional conditions."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        out_channels: int,
        num_classes: int = 0,
        *,
        channels: Width,
        multipliers: tuple[Width, ...],
        blocks: Blocks,
        attention: tuple[Width, ...],
        heads: Width,
        dropout: Rate,
        patch_size: Kernel,
        times: int = 1,
        vector_width: int = 0,
        context_width: int = 0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of the images [H, W, C], H and W equal.
          out_channels: channels of the output.
          num_classes: number of labels; one more embedding means "no label". 0: unconditional.
          channels: width of the first level.
          multipliers: width of each level, divided by `channels`; each level after the first halves
            the resolution.
          blocks: residual blocks per level (one more in the decoder).
          attention: resolutions, after patching, at which blocks have self-attention, and
            cross-attention if there is a context. The middle always has it.
          heads: number of attention heads.
          dropout: rate inside residual blocks.
          patch_size: pixels folded into channels before the first level.
          times: number of times per example; the sum of their embeddings is used.
          vector_width: length of `vector`, D; 0: the network takes no vector.
          context_width: width of the vectors of `context`, E; 0: the network takes no context.
          dtype: compute type.
          rngs: for the initial parameters.
        """
        resolution, width, in_channels = shape
        if resolution != width:
            raise ConfigError(
                f"model.network='unet' takes square images, got {resolution} x {width}. Set "
                "dataset.image_size, or use the network 'dit'."
            )
        _check(resolution, patch_size, channels, multipliers, attention, heads)
        require(blocks >= 1, "model.denoiser.blocks", blocks, "at least 1")
        require(0 <= dropout < 1, "model.denoiser.dropout", dropout, "at least 0 and below 1")
        size = resolution // patch_size
        folded = patch_size**2
        embedding = 4 * channels
        self.patch_size, self.channels, self.dtype = patch_size, channels, dtype
        self.num_blocks = blocks
        self.time1 = Linear(times * channels, embedding, dtype=dtype, rngs=rngs)
        self.time2 = Linear(embedding, embedding, dtype=dtype, rngs=rngs)
        self.label = Embed(num_classes + 1, embedding, rngs=rngs) if num_classes else None
        zero_init = {"init": zeros, "dtype": dtype, "rngs": rngs}
        self.vector = Linear(vector_width, embedding, **zero_init) if vector_width else None
        self.context_width = context_width
        self.stem = Conv(in_channels * folded, channels, dtype=dtype, rngs=rngs)

        skips, width = [channels], channels
        down, up = {}, {}
        last = len(multipliers) - 1
        for i, multiplier in enumerate(multipliers):
            pairs = []
            for _ in range(blocks):
                pairs.append((width, width := channels * multiplier))
                skips.append(width)
            resample = None
            if i < last:
                resample = Conv(width, width, stride=2, dtype=dtype, rngs=rngs)
                skips.append(width)
            level_heads = heads if size >> i in attention else 0
            parts = (pairs, embedding, level_heads, resample)
            down[str(i)] = Level(*parts, dropout, dtype, rngs, context_width)
        self.down = nnx.Dict(down)
        self.middle1 = ResidualBlock(width, width, embedding, dropout, dtype, rngs)
        self.middle_attention = AttentionBlock(width, heads, dtype, rngs, context_width)
        self.middle2 = ResidualBlock(width, width, embedding, dropout, dtype, rngs)
        for i, multiplier in reversed(list(enumerate(multipliers))):
            pairs = []
            for _ in range(blocks + 1):
                pairs.append((width + skips.pop(), width := channels * multiplier))
            resample = Conv(width, width, dtype=dtype, rngs=rngs) if i else None
            level_heads = heads if size >> i in attention else 0
            parts = (pairs, embedding, level_heads, resample)
            up[str(i)] = Level(*parts, dropout, dtype, rngs, context_width)
        self.up = nnx.Dict(up)
        self.norm = GroupNorm(width)
        self.head = Conv(width, out_channels * folded, init=zeros, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, "B"] | Float[Array, "B times"],
        label: Int[Array, "B"] | None = None,
        *,
        vector: Float[Array, "B D"] | None = None,
        context: Float[Array, "B S E"] | None = None,
        context_mask: Bool[Array, "B S"] | None = None,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B H W D"]:
        """Applies the network.

        Args:
          x: noisy images.
          t: times as defined by the path, about 0 ... 1000; one row per example if `times` > 1.
          label: classes; `num_classes` is the null class. None if the network has no classes.
          vector: numbers; a linear map of them, which starts at zero, is added to the embedding of
            time. None if the network has no vector.
          context: vectors that cross-attention sees. None if the network has no context.
          context_mask: true for the vectors that are seen; None for all.
          key: for dropout; needed in training if the rate is above 0.
          train: whether dropout is on.

        Returns:
          The prediction, float32.

        Raises:
          ValueError: a vector or context is missing, or the network was built without it.
        """
        self._check(vector, context)
        layer, context = itertools.count(), Context(context, context_mask)

        def next_key() -> jax.Array | None:
            return None if key is None else jax.random.fold_in(key, next(layer))

        x = space_to_depth(x.astype(self.dtype), self.patch_size)
        waves = sinusoidal_embedding(t.reshape(-1), self.channels)
        # With several times, this product sums their embeddings.
        embedding = laid(self.time1(waves.reshape(len(x), -1)), EXAMPLES, None)
        embedding = laid(self.time2(nnx.silu(embedding)), EXAMPLES, None)
        if self.label is not None:
            embedding = embedding + self.label(label).astype(embedding.dtype)
        if self.vector is not None:
            embedding = embedding + self.vector(vector)
        h = laid(self.stem(x), *STREAM)
        skips = [h]
        for name in sorted(self.down, key=int):
            level = self.down[name]
            for i in range(self.num_blocks):
                h = level.block(i, h, embedding, context, next_key(), train)
                skips.append(h)
            if level.resample is not None:
                h = laid(level.resample(h), *STREAM)
                skips.append(h)
        h = self.middle1(h, embedding, next_key(), train)
        h = self.middle_attention(h, context)
        h = self.middle2(h, embedding, next_key(), train)
        for name in sorted(self.up, key=int, reverse=True):
            level = self.up[name]
            for i in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = level.block(i, h, embedding, context, next_key(), train)
            if level.resample is not None:
                h = laid(level.resample(upsample_nearest(h)), *STREAM)
        h = laid(self.head(self.norm(h, nnx.silu)), *STREAM)
        return depth_to_space(h, self.patch_size).astype(jnp.float32)

    def _check(self, vector: Array | None, context: Array | None) -> None:
        """Raises ValueError if one is missing, or given to a network that was built without it."""
        for name, value, expected in (
            ("vector", vector, self.vector is not None),
            ("context", context, self.context_width > 0),
        ):
            if (value is not None) != expected:
                shape = None if value is None else value.shape
                raise ValueError(
                    f"{name}: got shape {shape}, but the network was built "
                    + (f"with {name}_width." if expected else f"without {name}_width.")
                )
