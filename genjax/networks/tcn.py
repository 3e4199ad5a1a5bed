"""Temporal convolutional network over tokens or frames (Bai et al. 2018, arXiv:1803.01271)."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.checks import Kernel, Range, Rate, Width, require
from genjax.networks.sequence import Head, embedding, one_segment
from genjax.nn.layers import Linear, dropout, plus, product
from genjax.parallel.rules import Rules, fsdp, replicate

RULES: Rules = ((r"(kernel|embedding)$", fsdp), (r"(scale|bias)$", replicate))
ENDLESS = True  # nothing limits the number of positions

Held = Float[Array, "1 B R C"]  # the last R = (k - 1) * dilation inputs of a convolution


class Convolution(nnx.Module):
    """A dilated causal convolution with weight normalisation (Salimans & Kingma 2016, eq. 2).

    The last tap is on the position itself, the tap before it is `dilation` positions earlier, and
    so on. All taps are concatenated and multiplied in one product.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int,
        dilation: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Makes `kernel` [k, C, F], its norms `scale` [F], and `bias` [F].

        The kernel starts uniform in +-1 / sqrt(k C). The authors' code draws N(0, 0.01), but into
        an array that PyTorch's weight norm recomputes from its own parameters, drawn earlier.
        """
        init = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kernel = init(rngs.params(), (size, features_in, features_out), jnp.float32)
        self.kernel = nnx.Param(kernel)
        self.scale = nnx.Param(jnp.linalg.norm(kernel.reshape(-1, features_out), axis=0))
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32))
        self.size, self.dilation, self.dtype = size, dilation, dtype

    def __call__(
        self, x: Float[Array, "B T C"], segment: Int[Array, "B T"] | None, held: Held | None
    ) -> tuple[Float[Array, "B T F"], Held]:
        """Convolves `x`, which follows `held` (zeros if None); also returns the new `held`."""
        (B, T, C), reach = x.shape, (self.size - 1) * self.dilation
        before = jnp.zeros((B, reach, C), x.dtype) if held is None else held[0]
        joined = jnp.concatenate([before, x], axis=1)
        taps = [joined[:, i * self.dilation :][:, :T] for i in range(self.size)]
        latest = joined
        if segment is not None:
            padded = jnp.pad(segment, ((0, 0), (reach, 0)), constant_values=-1)
            in_segment = [
                padded[:, i * self.dilation :][:, :T] == segment for i in range(self.size)
            ]
            taps = [
                jnp.where(s[..., None], tap, 0) for s, tap in zip(in_segment, taps, strict=True)
            ]
            latest = jnp.where((padded == padded[:, -1:])[..., None], joined, 0)
        flat = self.kernel[...].reshape(-1, self.kernel.shape[-1])
        weight = (self.scale[...] * flat / jnp.linalg.norm(flat, axis=0)).astype(self.dtype)
        y = product(jnp.stack(taps, axis=2).reshape(B, T, -1), weight)
        return plus(y, self.bias[...]), latest[None, :, T:]


class Level(nnx.Module):
    """Two convolutions and a shortcut (figure 1b)."""

    def __init__(
        self,
        features_in: int,
        width: int,
        size: int,
        dilation: int,
        rate: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Makes the layers; the shortcut has a linear layer if the widths differ."""
        conv_options = (size, dilation, dtype, rngs)
        self.conv1 = Convolution(features_in, width, *conv_options)
        self.conv2 = Convolution(width, width, *conv_options)
        init, widths_differ = jax.nn.initializers.normal(0.01), features_in != width
        self.shortcut = (
            Linear(features_in, width, init=init, dtype=dtype, rngs=rngs) if widths_differ else None
        )
        self.rate = rate

    def __call__(
        self,
        x: Float[Array, "B T C"],
        segment: Int[Array, "B T"] | None,
        held: tuple[Held, Held] | None,
        key: Array | None,
        train: bool,
    ) -> tuple[Float[Array, "B T F"], tuple[Held, Held]]:
        """Applies the level to `x`; also returns the new `held` of each convolution."""
        keys = [None] * 2 if key is None else jax.random.split(key)
        h, new_held = x, []
        for i, conv in enumerate((self.conv1, self.conv2)):
            h, conv_held = conv(h, segment, None if held is None else held[i])
            h = dropout(nnx.relu(h), self.rate, keys[i], train)
            new_held.append(conv_held)
        return nnx.relu(h + (x if self.shortcut is None else self.shortcut(x))), tuple(new_held)


class Network(nnx.Module):
    """Predicts the logits of the next token or frame; `sequence` describes how to call it.

    Each position sees 1 + 2 (k - 1) (2^L - 1) positions, including itself. The cache is the last
    inputs of each convolution; the number of positions is unlimited.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        *,
        frames: bool = False,
        width: Width = 150,
        depth: Annotated[int, Range(1, 30)] = 4,
        kernel_size: Kernel = 5,
        tied: bool = False,
        dropout: Rate = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          vocabulary_size: number of values of a token, or of keys of a frame, V.
          length: not used.
          frames: whether the input is frames [B, T, V] of zeros and ones, used without embedding.
          width: channels, also of the token embeddings.
          depth: number of levels, L, of two convolutions each; dilation 2^i at level i.
          kernel_size: taps of a convolution, k.
          tied: whether the head shares the weights of the token embeddings.
          dropout: rate on token embeddings and after each convolution.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: no levels, no taps, or a tied head with frames.
        """
        del length
        require(not (tied and frames), "tied", tied, "False with frames, which have no embedding")
        layer_options = {"dtype": dtype, "rngs": rngs}
        self.embed = None if frames else embedding(vocabulary_size, width, False, **layer_options)
        self.levels = nnx.Dict(
            {
                str(i): Level(
                    vocabulary_size if frames and i == 0 else width,
                    width,
                    kernel_size,
                    2**i,
                    dropout,
                    **layer_options,
                )
                for i in range(depth)
            }
        )
        self.head = Head(width, vocabulary_size, tied=tied, use_bias=True, rngs=rngs)
        self.depth, self.dropout, self.dtype = depth, dropout, dtype

    def __call__(
        self,
        x: Int[Array, "B T"] | Float[Array, "B T V"],
        *,
        segment: Int[Array, "B T"] | None = None,
        cache: tuple[tuple[Held, Held], ...] | None = None,
        capacity: int = 0,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T V"], tuple[tuple[Held, Held], ...] | None]:
        """Returns the logits in float32, and the cache.

        Raises:
          ValueError: both a segment and a cache are given.
        """
        one_segment(segment, cache)
        keys = [None] * (self.depth + 1) if key is None else jax.random.split(key, self.depth + 1)
        h = x.astype(self.dtype)
        if self.embed is not None:
            h = dropout(self.embed(x), self.dropout, keys[-1], train)
        new_cache = []
        for i in range(self.depth):
            held = None if cache is None else cache[i]
            h, held = self.levels[str(i)](h, segment, held, keys[i], train)
            new_cache.append(held)
        logits = self.head(h[:, -1:] if capacity else h, self.embed)
        return logits, tuple(new_cache) if cache or capacity else None
