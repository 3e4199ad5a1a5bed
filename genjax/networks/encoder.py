"""A transformer that sees all tokens of a text at once (Devlin et al. 2018, BERT)."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.checks import Depth, OtherWidth, Positive, Range, Rate, Weight, Width, one_of, require
from genjax.networks import transformer
from genjax.networks.kv_cache import placed
from genjax.networks.sequence import Head
from genjax.networks.transformer import ACTIVATIONS, GATED, STREAM, Transformer, normal
from genjax.nn.layers import Embed, Linear, activated, dropout, plus
from genjax.parallel.layout import laid

RULES = transformer.RULES

POSITIONS = ("learned", "rotary", "none")
HEADS = ("tokens", "replaced", "none")


class Encoded(NamedTuple):
    """What an encoder makes of a text.

    Attributes:
      hidden: a vector for each token.
      logits: float32, at all positions or at those asked for: of each token of the vocabulary
        [B, P, V]; with the head "replaced", of having been replaced [B, P]; None without a head.
    """

    hidden: Float[Array, "B T D"]
    logits: Float[Array, "B P *V"] | None


class Network(nnx.Module):
    """Vectors of the tokens of a text, and logits of each; the defaults are BERT's.

    The head "tokens" is BERT's: a layer, its activation and a norm, then the embedding's weights
    and a bias. The head "replaced" is ELECTRA's (Clark et al. 2020, section 2): a layer, its
    activation, and a layer to one number.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        *,
        head: str = "tokens",
        token_types: Annotated[int, Range(0, 1024)] = 0,
        embedding_width: OtherWidth = 0,
        embedding_norm: bool = True,
        width: Width = 128,
        depth: Depth = 4,
        heads: Width = 4,
        hidden: OtherWidth = 0,
        activation: str = "gelu_exact",
        norm: str = "layer",
        norm_eps: Positive = 1e-12,
        norm_first: bool = False,
        positions: str = "learned",
        rope_base: Positive = 10_000.0,
        bias: bool = True,
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        init_std: Weight = 0.02,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          vocabulary_size: number of values of a token, the mask included, V.
          length: the largest number of positions, if they are learned.
          head: "tokens", "replaced" or "none".
          token_types: number of types of tokens, such as first and second text; 0: none.
          embedding_width: of the embedding and its positions, which a layer maps to D if it is
            not D; D if 0.
          embedding_norm: whether a norm follows the sum of the embeddings.
          width: D; see `transformer.Options`, also for the arguments not listed here.
          positions: "learned", one vector per position; "rotary"; or "none".
          dropout: rate on the embedded input and on what each block adds.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an option is out of range, or does not fit the others.
        """
        one_of("positions", positions, POSITIONS)
        one_of("head", head, HEADS)
        options = transformer.Options(
            width=width,
            depth=depth,
            heads=heads,
            hidden=hidden,
            activation=activation,
            norm=norm,
            norm_eps=norm_eps,
            norm_first=norm_first,
            rotary=positions == "rotary",
            rope_base=rope_base,
            bias=bias,
            dropout=dropout,
            attention_dropout=attention_dropout,
            causal=False,
            init_std=init_std,
            remat=remat,
            dtype=dtype,
        ).filled()
        narrow = options._replace(width=embedding_width or width)
        made = {"init": normal(options.init_std), "dtype": dtype, "rngs": rngs}
        self.embed = Embed(vocabulary_size, narrow.width, **made)
        self.types = Embed(token_types, narrow.width, **made) if token_types else None
        is_learned, table = positions == "learned", (length, narrow.width)
        self.positions = (
            nnx.Param(made["init"](rngs.params(), table, jnp.float32)) if is_learned else None
        )
        self.norm = transformer.norm(narrow) if embedding_norm else None
        self.widen = Linear(narrow.width, width, **made) if narrow.width != width else None
        self.body = Transformer(**options._asdict(), rngs=rngs)
        outer = {"tokens": narrow.width, "replaced": width}.get(head)
        self.transform = Linear(width, outer, **made) if outer else None
        self.head_norm = transformer.norm(narrow) if head == "tokens" else None
        if head == "tokens":
            self.head = Head(narrow.width, vocabulary_size, tied=True, use_bias=True, rngs=rngs)
        else:
            self.head = Linear(width, 1, **made) if head == "replaced" else None
        self.activation = {**ACTIVATIONS, **GATED}[activation]
        self.kind, self.dropout = head, dropout

    def __call__(
        self,
        x: Int[Array, "B T"],
        *,
        token_type: Int[Array, "B T"] | None = None,
        segment: Int[Array, "B T"] | None = None,
        at: Int[Array, "B P"] | None = None,
        key: Array | None = None,
        train: bool = False,
    ) -> Encoded:
        """Encodes texts.

        Args:
          x: tokens.
          token_type: of each token; 0 if there are types and none are given.
          segment: which text each token belongs to, see `sequence`; no text sees another.
          at: the positions whose logits are wanted; None for all.
          key: for dropout.
          train: whether dropout is on.

        Raises:
          ConfigError: more positions than the network learned.
        """
        keys = [None] * 2 if key is None else jax.random.split(key)
        h = self.embed(x)
        if self.types is not None:
            h = plus(h, self.types(jnp.zeros_like(x) if token_type is None else token_type))
        if self.positions is not None:
            table, T = self.positions[...], x.shape[1]
            expected = f"at most {len(table)}, as many as the network learned"
            require(len(table) >= T, "positions", T, expected)
            h = plus(h, table[placed(T, segment, None)])
        h = h if self.norm is None else self.norm(h)
        h = dropout(h, self.dropout, keys[0], train)
        h = h if self.widen is None else self.widen(h)
        h, _ = self.body(h, segment=segment, key=keys[1], train=train)
        asked = h if at is None else jnp.take_along_axis(h, at[..., None], axis=1)
        return Encoded(h, self._logits(asked))

    def _logits(self, h: Float[Array, "B P D"]) -> Float[Array, "B P *V"] | None:
        if self.transform is None:
            return None
        h = activated(self.activation, self.transform(h))
        if self.kind == "replaced":
            return self.head(h)[..., 0].astype(jnp.float32)
        return laid(self.head(self.head_norm(h), self.embed), *STREAM)
