"""Queries, keys and values of attention by one product, or keys and values alone."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from genjax.nn.layers import Initializer, contract, plus, product
from genjax.parallel.layout import EXAMPLES, LENGTH, UNITS, laid, ways

# Paths of the parameters of this module in networks: qkv of self-attention; keys and values alone.
BY_HEAD = re.compile(r"(^|/)(qkv|pair|memory)/(kernel|bias)$")


class QueryKeyValue(nnx.Module):
    """Linear maps to N heads of queries and to K heads of keys and values, each of size H.

    Each head of keys serves G = N / K of queries (Ainslie et al. 2023); with N = 0 there are keys
    and values alone. The kernel is [D, K, (G + 2) H]: for each head of keys the columns of its
    queries, then those of the keys, then those of the values. So each device has all that a head
    needs where `tensor` splits K.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        size: int,
        *,
        use_bias: bool = True,
        init: Initializer,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Makes the parameters `kernel` and `bias` [K, (G + 2) H].

        `init` sees the kernel as that of a linear layer, [D, (N + 2 K) H].
        """
        features = (heads + 2 * kv_heads) * size
        kernel = init(rngs.params(), (width, features), jnp.float32)
        self.kernel = nnx.Param(grouped(kernel, kv_heads, heads * size))
        zeros = jnp.zeros((kv_heads, features // kv_heads), jnp.float32)
        self.bias = nnx.Param(zeros) if use_bias else None
        self.group, self.dtype = heads // kv_heads, dtype

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T K F"]:
        """Applies the layer."""
        kernel, x = self.kernel[...], x.astype(self.dtype)
        if ways(UNITS, LENGTH) > 1:  # split axes are not merged: that would move data
            y = contract("btd,dkf->btkf", x, kernel).astype(x.dtype)
        else:
            y = product(x, kernel.reshape(len(kernel), -1))
            y = y.reshape(*x.shape[:2], *kernel.shape[1:])
        y = y if self.bias is None else plus(y, self.bias[...])
        return laid(y, EXAMPLES, LENGTH, UNITS, None)

    def turned_and_value(
        self, y: Float[Array, "B T K F"]
    ) -> tuple[Float[Array, "B T M H"], Float[Array, "B T K H"]]:
        """Queries and keys together, for positions to turn them, and values; M = N + K."""
        B, T, K, _ = y.shape
        # The gradient of a split is a concatenation; that of slices is a sum of padded arrays.
        parts = jnp.split(y.reshape(B, T, K, self.group + 2, -1), [self.group + 1], axis=3)
        return tuple(part.reshape(B, T, -1, part.shape[-1]) for part in parts)

    def query_and_key(
        self, turned: Float[Array, "B T M H"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"]]:
        """Queries and keys."""
        B, T, _, H = turned.shape
        parts = jnp.split(turned.reshape(B, T, -1, self.group + 1, H), [self.group], axis=3)
        return tuple(part.reshape(B, T, -1, H) for part in parts)


def grouped(columns: Float[Array, "... F"], kv_heads: int, queries: int) -> Float[Array, "... K f"]:
    """Columns by head of keys, from columns of all queries, then all keys, then all values.

    Args:
      columns: of a kernel or a bias.
      kv_heads: K.
      queries: how many of the columns are of queries.
    """
    keys = (columns.shape[-1] - queries) // 2
    numbers = np if isinstance(columns, np.ndarray) else jnp
    parts = numbers.split(columns, [queries, queries + keys], axis=-1)
    shape = (*columns.shape[:-1], kv_heads, -1)
    return numbers.concatenate([part.reshape(shape) for part in parts], axis=-1)


def side_by_side(columns: Float[Array, "... K f"], queries: int) -> Float[Array, "... F"]:
    """The inverse of `grouped`."""
    K, f = columns.shape[-2:]
    size = (K * f - queries) // (2 * K)
    numbers = np if isinstance(columns, np.ndarray) else jnp
    parts = numbers.split(columns, [f - 2 * size, f - size], axis=-1)
    shape = (*columns.shape[:-2], -1)
    return numbers.concatenate([part.reshape(shape) for part in parts], axis=-1)
