"""A causal transformer over the tokens of an image, row by row, and of a text before them."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from genjax.checks import Depth, OtherWidth, Rate, Width
from genjax.networks import transformer
from genjax.networks.kv_cache import Cache
from genjax.networks.transformer import STREAM, Transformer, normal
from genjax.nn.layers import Embed, contract, plus
from genjax.parallel.layout import laid

RULES = transformer.RULES


class Network(nnx.Module):
    """Predicts the logits of each token given those before it, row by row, left to right.

    A position has Q tokens (residual VQ), each from its own codebook. With a text (Ramesh et al.
    2021, DALL-E), its tokens precede those of the image in one sequence. Both parts have
    vocabularies and positions of their own. Only the text's own tokens are seen, not its padding.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        vocabulary_size: int,
        num_classes: int = 0,
        *,
        text_length: OtherWidth = 0,
        text_vocabulary_size: OtherWidth = 0,
        text_logits: bool = False,
        width: Width = 128,
        depth: Depth = 4,
        heads: Width = 4,
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of the tokens of an image [h, w, Q].
          vocabulary_size: number of values of a token, K.
          num_classes: number of labels; 0: none.
          text_length: tokens of a text, T; 0: there is none.
          text_vocabulary_size: number of values of a text's token, V.
          text_logits: whether the tokens of the text are predicted too.
          width: see `transformer.Options`, also for the arguments not listed here.
          dropout: rate on what each block adds.
          dtype: compute type.
          rngs: for the initial parameters.
        """
        self.Q, self.K, self.S, self.T = shape[-1], vocabulary_size, math.prod(shape), text_length
        embed_options = {"init": normal(0.02), "dtype": dtype, "rngs": rngs}
        self.token = Embed(self.Q * self.K, width, **embed_options)
        self.start = Embed(max(num_classes, 1), width, **embed_options)
        self.positions = _param((self.S, width), rngs)
        self.body = Transformer(
            width=width,
            depth=depth,
            heads=heads,
            dropout=dropout,
            attention_dropout=attention_dropout,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.kernel = _param((self.Q, width, self.K), rngs)
        table = (text_vocabulary_size, width)
        self.text = Embed(*table, **embed_options) if text_length else None
        self.text_positions = _param((text_length + 1, width), rngs) if text_length else None
        predicted = text_length and text_logits
        self.text_kernel = _param(table[::-1], rngs) if predicted else None
        self.dtype = dtype

    def __call__(
        self,
        index: Int[Array, "B *S"],
        label: Int[Array, "B"] | None = None,
        *,
        text: Int[Array, "B T"] | None = None,
        seen: Bool[Array, "B T"] | None = None,
        position: Int[Array, ""] | int | None = None,
        cache: Cache | None = None,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B *S K"], Any]:
        """Returns the logits in float32, and the cache or, without a position, the text's logits.

        The text's logits [B, T, V] are None if they are not predicted.

        Args:
          index: all tokens [B, S]; with `position`, only the token before that position [B].
          label: classes.
          text: tokens of the text, if the network has one; needed at position 0 and without one.
          seen: which of them are seen; all if None. An example of which none are seen is one
            without a text.
          position: compute the logits [B, K] of this token only. 0 starts an image and ignores
            `index`.
          cache: returned by the call for the previous position; None at position 0.
          key: for dropout.
          train: whether dropout is on.
        """
        first = self.start(jnp.zeros(len(index), jnp.int32) if label is None else label)
        place = self.positions[...]
        if position is not None and cache is not None:
            x = plus(self.token(index + self.K * ((position - 1) % self.Q)), place[position])
            h, cache = self.body(x[:, None], cache=cache)
            return self._logits(h, jnp.array([position % self.Q]))[:, 0], cache
        x = first[:, None]
        if position is None:
            before = self.token(index[:, :-1] + self.K * (jnp.arange(self.S - 1) % self.Q))
            x = jnp.concatenate([x, before], axis=1)
        x, segment, begins = plus(x, place[: x.shape[1]]), None, 0
        if self.text is not None:
            words = jnp.concatenate([first[:, None], self.text(text)], axis=1)
            x = jnp.concatenate([plus(words, self.text_positions[...]), x], axis=1)
            own = jnp.ones(text.shape, bool) if seen is None else seen
            segment = jnp.pad(own, ((0, 0), (1, x.shape[1] - self.T - 1)), constant_values=True)
            segment, begins = segment.astype(jnp.int32), 1 + self.T
        capacity = 0 if position is None else begins + self.S
        h, cache = self.body(x, segment=segment, capacity=capacity, key=key, train=train)
        if position is not None:
            return self._logits(h[:, -1:], jnp.array([0]))[:, 0], cache
        words = None
        if self.text_kernel is not None:
            kernel = self.text_kernel[...].astype(self.dtype)
            words = laid(contract("btd,dv->btv", h[:, : self.T], kernel), *STREAM)
        return laid(self._logits(h[:, begins:], jnp.arange(self.S) % self.Q), *STREAM), words

    def _logits(self, h: Float[Array, "B T D"], q: Int[Array, "T"]) -> Float[Array, "B T K"]:
        kernel = self.kernel[...].astype(self.dtype)
        if self.Q == 1 or len(q) == 1:
            return contract("bsd,dk->bsk", h, kernel[q[0]])
        B, S, D = h.shape
        grouped = h.reshape(-1, self.Q, D).swapaxes(0, 1)
        logits = contract("qnd,qdk->qnk", grouped, kernel)
        return logits.swapaxes(0, 1).reshape(B, S, self.K)


def _param(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(normal(0.02)(rngs.params(), shape, jnp.float32))
