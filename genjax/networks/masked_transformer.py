"""A transformer that sees every token, masked or not (Sahoo et al. 2024; Chang et al. 2022)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from genjax.checks import Depth, OtherWidth, Rate, Weight, Width, one_of, require
from genjax.networks import transformer
from genjax.networks.kv_cache import placed
from genjax.networks.sequence import small
from genjax.networks.transformer import STREAM, Transformer
from genjax.nn.layers import Embed, Linear, contract, dropout, plus, sinusoidal_embedding
from genjax.parallel.layout import laid

RULES = transformer.RULES

POSITIONS = ("learned", "rotary")


class Network(nnx.Module):
    """Predicts the logits of each token given the tokens that are not masked.

    The mask is token K, which is never drawn. A position of an image has Q tokens (residual VQ),
    each from its own codebook; they follow each other in the sequence. With a text (Chang et al.
    2023, Muse), its tokens precede them, with a vocabulary and positions of their own; all tokens
    see it, and it is not predicted.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        *,
        codebooks: int = 1,
        num_classes: int = 0,
        time: bool = False,
        text_length: OtherWidth = 0,
        text_vocabulary_size: OtherWidth = 0,
        width: Width = 128,
        depth: Depth = 4,
        heads: Width = 4,
        hidden: OtherWidth = 0,
        activation: str = "gelu",
        norm: str = "layer",
        positions: str = "learned",
        bias: bool = True,
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        init_std: Weight = 0.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          vocabulary_size: number of values of a token, K.
          length: the largest number of tokens in an example, S.
          codebooks: Q; token i of an example is from codebook i mod Q.
          num_classes: number of labels; class `num_classes` means "no label". 0: unconditional.
          time: whether the network is conditioned on time.
          text_length: tokens of a text, T; 0: there is none.
          text_vocabulary_size: number of values of a text's token.
          width: see `transformer.Options`, also for the arguments not listed here.
          positions: "learned", one vector per position; or "rotary".
          dropout: rate on the embedded input and on what each block adds.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an option is out of range, or does not fit the others.
        """
        one_of("positions", positions, POSITIONS)
        fits = not text_length or positions == "learned"
        require(fits, "positions", positions, "'learned' with a text, whose padding is in between")
        self.Q, self.K, self.length = codebooks, vocabulary_size, length
        embed_options = {"init": small, "dtype": dtype, "rngs": rngs}
        self.token = Embed(self.Q * (self.K + 1), width, **embed_options)
        self.label = Embed(num_classes + 1, width, **embed_options) if num_classes else None
        table = (text_vocabulary_size, width)
        self.text = Embed(*table, **embed_options) if text_length else None
        self.text_positions = (
            nnx.Param(small(rngs.params(), (text_length, width), jnp.float32))
            if text_length
            else None
        )
        self.time1 = Linear(width, width, dtype=dtype, rngs=rngs) if time else None
        self.time2 = Linear(width, width, dtype=dtype, rngs=rngs) if time else None
        is_learned = positions == "learned"
        self.positions = (
            nnx.Param(small(rngs.params(), (length, width), jnp.float32)) if is_learned else None
        )
        self.body = Transformer(
            width=width,
            depth=depth,
            heads=heads,
            hidden=hidden,
            activation=activation,
            norm=norm,
            rotary=not is_learned,
            bias=bias,
            dropout=dropout,
            attention_dropout=attention_dropout,
            causal=False,
            init_std=init_std,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.kernel = nnx.Param(small(rngs.params(), (self.Q, width, self.K), jnp.float32))
        self.dropout, self.width = dropout, width

    def __call__(
        self,
        x: Int[Array, "B S"],
        label: Int[Array, "B"] | None = None,
        time: Float[Array, "B"] | None = None,
        *,
        text: Int[Array, "B T"] | None = None,
        seen: Bool[Array, "B T"] | None = None,
        segment: Int[Array, "B S"] | None = None,
        key: Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B S K"]:
        """Returns the logits in float32.

        Args:
          x: tokens 0 ... K - 1, or K if masked.
          label: classes.
          time: from 0, no token masked, to 1, all tokens masked.
          text: tokens of the text, if the network has one.
          seen: which of them are seen; all if None.
          segment: which document each token belongs to, see `sequence`; None with a text.
          key: for dropout.
          train: whether dropout is on.

        Raises:
          ConfigError: more positions than the network learned.
        """
        S = x.shape[1]
        keys = [None] * 2 if key is None else jax.random.split(key)
        h = self.token(x + (self.K + 1) * (jnp.arange(S) % self.Q))
        if self.positions is not None:
            expected = f"at most {self.length}, as many as the network learned"
            require(self.length >= S, "positions", S, expected)
            h = plus(h, self.positions[...][placed(S, segment, None)])
        if self.label is not None:
            h = plus(h, self.label(label)[:, None])
        if self.time1 is not None:
            embedded = self.time1(sinusoidal_embedding(1000.0 * time, self.width))
            h = plus(h, self.time2(jax.nn.silu(embedded.astype(jnp.float32)))[:, None])
        if self.text is not None:
            words = plus(self.text(text), self.text_positions[...])
            h = jnp.concatenate([words, h], axis=1)
            own = jnp.ones(text.shape, bool) if seen is None else seen
            segment = jnp.pad(own, ((0, 0), (0, S)), constant_values=True).astype(jnp.int32)
        h = dropout(h, self.dropout, keys[0], train)
        h, _ = self.body(h, segment=segment, key=keys[1], train=train)
        return laid(self._logits(h[:, -S:]), *STREAM)

    def _logits(self, h: Float[Array, "B S D"]) -> Float[Array, "B S K"]:
        kernel, (B, S, D) = self.kernel[...].astype(h.dtype), h.shape
        if self.Q == 1:
            return contract("bsd,dk->bsk", h, kernel[0])
        grouped = h.reshape(-1, self.Q, D).swapaxes(0, 1)
        return contract("qnd,qdk->qnk", grouped, kernel).swapaxes(0, 1).reshape(B, S, self.K)
