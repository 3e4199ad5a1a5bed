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

Held = Float[Array, "1 B R C"]  # the last R = (k - 1) dilation inputs of a convolution


class Convolution(nnx.Module):
    """A causal convolution with gaps and weight normalisation (Salimans & Kingma 2016, eq. 2).

    The last tap is on the position itself, the one ahead of it `dilation` positions earlier, and so
    on. The taps laid side by side make one product.
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
        """Makes `kernel` [k, C, F], its lengths `scale` [F], and `bias` [F].

        The kernel begins uniform within +-1 / sqrt(k C). The authors' code draws N(0, 0.01), but
        into an array that PyTorch's weight norm makes anew from what was drawn before.
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
        """What it makes of `x`, which follows `held` (zeros if None), and the inputs to hold."""
        (B, T, C), reach = x.shape, (self.size - 1) * self.dilation
        before = jnp.zeros((B, reach, C), x.dtype) if held is None else held[0]
        joined = jnp.concatenate([before, x], axis=1)
        taps = [joined[:, i * self.dilation :][:, :T] for i in range(self.size)]
        latest = joined
        if segment is not None:
            own = jnp.pad(segment, ((0, 0), (reach, 0)), constant_values=-1)
            same = [own[:, i * self.dilation :][:, :T] == segment for i in range(self.size)]
            taps = [jnp.where(s[..., None], tap, 0) for s, tap in zip(same, taps, strict=True)]
            latest = jnp.where((own == own[:, -1:])[..., None], joined, 0)
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
        """The shortcut has a linear layer where the widths differ."""
        given = (size, dilation, dtype, rngs)
        self.conv1 = Convolution(features_in, width, *given)
        self.conv2 = Convolution(width, width, *given)
        init, wider = jax.nn.initializers.normal(0.01), features_in != width
        self.shortcut = (
            Linear(features_in, width, init=init, dtype=dtype, rngs=rngs) if wider else None
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
        """What it makes of `x`, and the inputs of each convolution to hold."""
        keys = [None] * 2 if key is None else jax.random.split(key)
        h, kept = x, []
        for i, conv in enumerate((self.conv1, self.conv2)):
            h, own = conv(h, segment, None if held is None else held[i])
            h = dropout(nnx.relu(h), self.rate, keys[i], train)
            kept.append(own)
        return nnx.relu(h + (x if self.shortcut is None else self.shortcut(x))), tuple(kept)


class Network(nnx.Module):
    """The logits of what comes next, given what came so far; see `sequence` for how it is called.

    It sees 1 + 2 (k - 1) (2^L - 1) positions, its own included. Its cache is the last inputs of
    each convolution, and nothing limits the number of positions.
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
          vocabulary_size: values of a token, or keys of a frame, V.
          length: of no matter here.
          frames: whether it goes over frames [B, T, V] of zeros and ones, as they are.
          width: channels, and the size of the vectors that stand for tokens.
          depth: levels, L, of two convolutions each; dilation 2^i at level i.
          kernel_size: taps of a convolution, k.
          tied: whether the head has the weights of the tokens' vectors.
          dropout: probability, of the tokens' vectors and behind each convolution.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: no levels, no taps, or a tied head without tokens.
        """
        del length
        require(not (tied and frames), "tied", tied, "False with frames, which have no vectors")
        made = {"dtype": dtype, "rngs": rngs}
        self.embed = None if frames else embedding(vocabulary_size, width, False, **made)
        self.levels = nnx.Dict(
            {
                str(i): Level(
                    vocabulary_size if frames and i == 0 else width,
                    width,
                    kernel_size,
                    2**i,
                    dropout,
                    **made,
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
        """Logits in float32, and the cache.

        Raises:
          ValueError: a segment as well as a cache.
        """
        one_segment(segment, cache)
        keys = [None] * (self.depth + 1) if key is None else jax.random.split(key, self.depth + 1)
        h = x.astype(self.dtype)
        if self.embed is not None:
            h = dropout(self.embed(x), self.dropout, keys[-1], train)
        held = []
        for i in range(self.depth):
            own = None if cache is None else cache[i]
            h, kept = self.levels[str(i)](h, segment, own, keys[i], train)
            held.append(kept)
        logits = self.head(h[:, -1:] if capacity else h, self.embed)
        return logits, tuple(held) if cache or capacity else None
