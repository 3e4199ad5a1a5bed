"""The vision transformer (Dosovitskiy et al. 2020) that maps an image to one vector, as in CLIP."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from genjax.checks import Depth, Kernel, OtherWidth, Rate, Weight, Width, one_of, require
from genjax.networks import transformer
from genjax.networks.transformer import Transformer, normal
from genjax.nn.layers import LayerNorm, Linear, dropout, plus, space_to_depth
from genjax.parallel.rules import Rules, replicate

RULES: Rules = ((r"class_token$", replicate), *transformer.RULES)

POOLS = ("token", "mean")


class Network(nnx.Module):
    """A linear map of patches, learned positions, a transformer, and one vector of the result.

    As in CLIP's (Radford et al. 2021, section 2.4), a norm precedes the first block, and neither
    the map of patches nor that to the result has a bias.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        features: int,
        *,
        patch_size: Kernel = 4,
        width: Width = 128,
        depth: Depth = 4,
        heads: Width = 4,
        hidden: OtherWidth = 0,
        activation: str = "gelu",
        pool: str = "token",
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        init_std: Weight = 0.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of the images, (H, W, C).
          features: size of the result, E.
          patch_size: side of the square patches, which divides H and W.
          width: D; see `transformer.Options`, also for the arguments not listed here.
          pool: "token": the result is a map of the last vector of a token that precedes the
            patches; "mean": of the mean of the patches' vectors, and there is no such token.
          dropout: rate on the embedded patches and on what each block adds.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an option is out of range, or the patches do not divide the image.
        """
        one_of("pool", pool, POOLS)
        height, wide, channels = shape
        fits = height % patch_size == wide % patch_size == 0
        require(fits, "patch_size", patch_size, f"a divisor of the image's sides {height}, {wide}")
        draw = normal(width**-0.5)
        count = height // patch_size * (wide // patch_size) + (pool == "token")
        inner = patch_size**2 * channels
        self.patch = Linear(inner, width, use_bias=False, dtype=dtype, rngs=rngs)
        token = pool == "token"
        self.class_token = nnx.Param(draw(rngs.params(), (width,))) if token else None
        self.positions = nnx.Param(draw(rngs.params(), (count, width)))
        self.norm = LayerNorm(width)
        self.body = Transformer(
            width=width,
            depth=depth,
            heads=heads,
            hidden=hidden,
            activation=activation,
            causal=False,
            dropout=dropout,
            attention_dropout=attention_dropout,
            init_std=init_std,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.out = Linear(width, features, use_bias=False, rngs=rngs)
        self.patch_size, self.rate = patch_size, dropout

    def __call__(
        self, x: Float[Array, "B H W C"], *, key: jax.Array | None = None, train: bool = False
    ) -> Float[Array, "B E"]:
        """Applies the network; the result is float32.

        Args:
          x: images.
          key: for dropout; needed in training if a rate is above 0.
          train: whether dropout is on.
        """
        keys = [None] * 2 if key is None else jax.random.split(key)
        h = self.patch(space_to_depth(x, self.patch_size))
        h = h.reshape(len(x), -1, h.shape[-1])
        if self.class_token is not None:
            first = jnp.broadcast_to(
                self.class_token[...].astype(h.dtype), (len(x), 1, h.shape[-1])
            )
            h = jnp.concatenate([first, h], axis=1)
        h = dropout(self.norm(plus(h, self.positions[...])), self.rate, keys[0], train)
        h, _ = self.body(h, key=keys[1], train=train)
        pooled = h.astype(jnp.float32).mean(1) if self.class_token is None else h[:, 0]
        return self.out(pooled.astype(jnp.float32))
