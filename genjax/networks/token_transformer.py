"""A causal transformer over the tokens of an image, row by row."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.checks import Depth, Rate, Width
from genjax.networks import transformer
from genjax.networks.kv_cache import Cache
from genjax.networks.transformer import STREAM, Transformer, normal
from genjax.nn.layers import Embed, contract, plus
from genjax.parallel.layout import laid

RULES = transformer.RULES


class Network(nnx.Module):
    """Predicts the logits of each token given those before it, row by row, left to right.

    A position has Q tokens (residual VQ), each from its own codebook.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        vocabulary_size: int,
        num_classes: int = 0,
        *,
        width: Width = 128,
        depth: Depth = 4,
        heads: Width = 4,
        dropout: Rate = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of the tokens of an image [h, w, Q].
          vocabulary_size: number of values of a token, K.
          num_classes: number of labels; 0: unconditional.
          width: of the vectors.
          depth: number of blocks.
          heads: number of attention heads.
          dropout: rate on what each block adds.
          dtype: compute type.
          rngs: for the initial parameters.
        """
        self.Q, self.K, self.S = shape[-1], vocabulary_size, math.prod(shape)
        embed_options = {"init": normal(0.02), "dtype": dtype, "rngs": rngs}
        self.token = Embed(self.Q * self.K, width, **embed_options)
        self.start = Embed(max(num_classes, 1), width, **embed_options)
        self.positions = nnx.Param(normal(0.02)(rngs.params(), (self.S, width), jnp.float32))
        self.body = Transformer(
            width=width, depth=depth, heads=heads, dropout=dropout, dtype=dtype, rngs=rngs
        )
        kernel = normal(0.02)(rngs.params(), (self.Q, width, self.K), jnp.float32)
        self.kernel = nnx.Param(kernel)
        self.dtype = dtype

    def __call__(
        self,
        index: Int[Array, "B *S"],
        label: Int[Array, "B"] | None = None,
        *,
        position: Int[Array, ""] | int | None = None,
        cache: Cache | None = None,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B *S K"], Any]:
        """Returns the logits in float32, and the cache.

        Args:
          index: all tokens [B, S]; with `position`, only the token before that position [B].
          label: classes.
          position: compute the logits [B, K] of this token only. 0 starts an image and ignores
            `index`.
          cache: returned by the call for the previous position; None at position 0.
          key: for dropout.
          train: whether dropout is on.
        """
        first = self.start(jnp.zeros(len(index), jnp.int32) if label is None else label)
        if position is None:
            before = self.token(index[:, :-1] + self.K * (jnp.arange(self.S - 1) % self.Q))
            x = jnp.concatenate([first[:, None], before], axis=1)
            x = plus(x, self.positions[...])
            h, _ = self.body(x, key=key, train=train)
            return laid(self._logits(h, jnp.arange(self.S) % self.Q), *STREAM), None
        x = first if cache is None else self.token(index + self.K * ((position - 1) % self.Q))
        x = plus(x, self.positions[...][position])
        h, cache = self.body(x[:, None], cache=cache, capacity=0 if cache else self.S)
        return self._logits(h, jnp.array([position % self.Q]))[:, 0], cache

    def _logits(self, h: Float[Array, "B T D"], q: Int[Array, "T"]) -> Float[Array, "B T K"]:
        kernel = self.kernel[...].astype(self.dtype)
        if self.Q == 1 or len(q) == 1:
            return contract("bsd,dk->bsk", h, kernel[q[0]])
        B, S, D = h.shape
        grouped = h.reshape(-1, self.Q, D).swapaxes(0, 1)
        logits = contract("qnd,qdk->qnk", grouped, kernel)
        return logits.swapaxes(0, 1).reshape(B, S, self.K)
