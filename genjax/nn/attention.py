"""Attention, and the softmax in it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genjax.nn.layers import contract, dropout

# Of queries whose keys end where they end: how many there are at most, and the least size of one.
_BLOCKS, _BLOCK = 8, 64


@jax.custom_jvp
def softmax(x: Float[Array, "... S"]) -> Float[Array, "... S"]:
    """exp(x) over its sum along the last axis, where not all may be -inf.

    The gradient is in terms of the result. That of `jax.nn.softmax` is one of a quotient.
    """
    y = jnp.exp(x - x.max(-1, keepdims=True))
    return y / y.sum(-1, keepdims=True)


@softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y, (dx,) = softmax(*primals), tangents
    return y, y * (dx - (y * dx).sum(-1, keepdims=True))


def attention(
    query: Float[Array, "B T N D"],
    key: Float[Array, "B S K D"],
    value: Float[Array, "B S K D"],
    mask: Bool[Array, "..."] | None = None,
    *,
    causal: bool = False,
    rate: float = 0.0,
    draws: jax.Array | None = None,
    train: bool = False,
) -> Float[Array, "B T N D"]:
    """`softmax(q k^T / sqrt(D)) v` per head (Vaswani et al. 2017, eq. 1), float32 softmax.

    With fewer keys' heads than queries', K that divides N, each serves N / K queries' heads in turn
    (Ainslie et al. 2023).

    Args:
      query: q.
      key: k.
      value: v.
      mask: true where a query may look, [T, S] or [B or 1, N or 1, T, S]; each must see one key at
        least.
      causal: promises that the mask lets no query see a later key, and T = S: up to eight blocks of
        queries are gone through, each with the keys up to its own, about half of all.
      rate: of the dropout of the weights.
      draws: key of that.
      train: whether to drop out.
    """
    B, T, N, D = query.shape
    K = key.shape[2]
    grouped = query.reshape(B, T, K, N // K, D).transpose(2, 0, 1, 3, 4)
    key, value = (x.transpose(2, 0, 1, 3) for x in (key, value))
    if mask is not None:
        examples, heads, _, S = (1,) * (4 - mask.ndim) + mask.shape
        groups = (1, 1) if heads == 1 else (K, N // K)
        mask = mask.reshape(examples, *groups, T, S).transpose(1, 0, 3, 2, 4)
    size = max(-(-T // _BLOCKS), _BLOCK) if causal else T
    # Put together again, and not cut off: so the gradients of the parts are added, not padded ones.
    queries, keys, values = (
        jnp.split(x, [*range(size, T, size)], axis=2) if causal else [x]
        for x in (grouped, key, value)
    )
    mixed = []
    for i, start in enumerate(range(0, T, size)):
        rows, seen = slice(start, start + size), slice(start + size if causal else None)
        key, value = (jnp.concatenate(parts[: i + 1], axis=2) for parts in (keys, values))
        scores = contract("kbtgd,kbsd->kbtgs", queries[i], key) / math.sqrt(D)
        if mask is not None:
            scores = jnp.where(mask[:, :, rows, :, seen], scores, -jnp.inf)
        own = draws if draws is None or not start else jax.random.fold_in(draws, start)
        weights = dropout(softmax(scores), rate, own, train).astype(value.dtype)
        mixed.append(contract("kbtgs,kbsd->kbtgd", weights, value).astype(value.dtype))
    return jnp.concatenate(mixed, 2).transpose(1, 2, 0, 3, 4).reshape(B, T, N, D)


def across(
    query: Float[Array, "B T N D"],
    key: Float[Array, "B S K D"],
    value: Float[Array, "B S K D"],
    mask: Bool[Array, "B S"] | None,
) -> Float[Array, "B T N D"]:
    """Attention to a context, of which the mask says what is seen: None for all.

    It is zero in an example that may see none of it.
    """
    if mask is None:
        return attention(query, key, value)
    some = mask.any(-1)[:, None, None, None]
    shape = (len(mask), 1, query.shape[1], mask.shape[1])
    seen = jnp.broadcast_to(mask[:, None, None] | ~some, shape)
    return jnp.where(some, attention(query, key, value, seen), 0)
