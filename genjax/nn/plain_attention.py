"""The formula of attention, and the softmax in it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genjax.nn.layers import contract, dropout

# The most blocks of queries in causal attention, and the least size of a block.
_MOST_BLOCKS, _LEAST_BLOCK = 8, 64


@jax.custom_jvp
def softmax(x: Float[Array, "... S"]) -> Float[Array, "... S"]:
    """exp(x) over its sum along the last axis, on which at least one x must be above -inf.

    The derivative is computed from the result; `jax.nn.softmax` differentiates the quotient.
    """
    y = jnp.exp(x - x.max(-1, keepdims=True))
    return y / y.sum(-1, keepdims=True)


@softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y, (dx,) = softmax(*primals), tangents
    return y, y * (dx - (y * dx).sum(-1, keepdims=True))


def causal_mask(T: int, S: int, window: int = 0) -> Bool[Array, "T S"]:
    """Whether query i sees key j: j <= i, and i - window < j if there is a window."""
    ahead = jnp.arange(S) - jnp.arange(T)[:, None]
    return (ahead <= 0) & (ahead > -window) if window else ahead <= 0


def plain_attention(
    query: Float[Array, "B T N D"],
    key: Float[Array, "B S K D"],
    value: Float[Array, "B S K D"],
    mask: Bool[Array, "..."] | None = None,
    *,
    bias: Float[Array, "b N T S"] | None = None,
    causal: bool = False,
    rate: float = 0.0,
    draws: jax.Array | None = None,
    train: bool = False,
) -> Float[Array, "B T N D"]:
    """Attention by products and a softmax; `attention.attention` describes the arguments.

    If `causal`, up to eight blocks of queries are computed, each with the keys up to its end: about
    half of all products.
    """
    B, T, N, D = query.shape
    K = key.shape[2]
    grouped = query.reshape(B, T, K, N // K, D).transpose(2, 0, 1, 3, 4)
    key, value = (x.transpose(2, 0, 1, 3) for x in (key, value))
    if mask is not None:
        examples, heads, _, S = (1,) * (4 - mask.ndim) + mask.shape
        groups = (1, 1) if heads == 1 else (K, N // K)
        mask = mask.reshape(examples, *groups, T, S).transpose(1, 0, 3, 2, 4)
    if bias is not None:
        bias = bias.reshape(len(bias), K, N // K, T, -1).transpose(1, 0, 3, 2, 4)
    size = max(-(-T // _MOST_BLOCKS), _LEAST_BLOCK) if causal else T
    # Split and concatenated again instead of sliced: the gradient of a slice would be padded.
    queries, keys, values = (
        jnp.split(x, [*range(size, T, size)], axis=2) if causal else [x]
        for x in (grouped, key, value)
    )
    outputs = []
    for i, start in enumerate(range(0, T, size)):
        rows, seen = slice(start, start + size), slice(start + size if causal else None)
        key, value = (jnp.concatenate(parts[: i + 1], axis=2) for parts in (keys, values))
        scores = contract("kbtgd,kbsd->kbtgs", queries[i], key) / math.sqrt(D)
        if bias is not None:
            scores = scores + bias[:, :, rows, :, seen].astype(jnp.float32)
        if mask is not None:
            scores = jnp.where(mask[:, :, rows, :, seen], scores, -jnp.inf)
        block_key = draws if draws is None or not start else jax.random.fold_in(draws, start)
        weights = dropout(softmax(scores), rate, block_key, train).astype(value.dtype)
        outputs.append(contract("kbtgs,kbsd->kbtgd", weights, value).astype(value.dtype))
    return jnp.concatenate(outputs, 2).transpose(1, 2, 0, 3, 4).reshape(B, T, N, D)
