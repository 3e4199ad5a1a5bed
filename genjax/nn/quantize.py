"""Quantisation of vectors: codebooks (VQ-VAE) and rounding (FSQ), with gradients through both.

A codebook that is updated by moving averages is a dict {"codes" [K, D], "counts" [K], "sums"
[K, D]}, part of a network's mutable state; the arithmetic is float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

Codebook = dict[str, Array]


def nearest(x: Float[Array, "N D"], codes: Float[Array, "K D"]) -> Int[Array, "N"]:
    """The index of the code nearest to each vector (Euclidean); the first of equals."""
    inner = jnp.matmul(x, codes.T, precision=lax.Precision.HIGHEST)
    return jnp.argmin(jnp.square(codes).sum(-1) - 2 * inner, axis=-1).astype(jnp.int32)


def straight_through(x: Float[Array, "*N"], quantised: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """`quantised`, with the gradient of x (van den Oord et al. 2017, section 3.2)."""
    return x + lax.stop_gradient(quantised - x)


def rotation(
    x: Float[Array, "*N D"], quantised: Float[Array, "*N D"], eps: float = 1e-6
) -> Float[Array, "*N D"]:
    """`quantised`, as a rotated and scaled x; gradients rotate back (Fifty et al. 2024, 4.2).

    A vector shorter than `eps` has no direction; for it this is `straight_through`.

    With unit vectors a of x, b of the code and r of a + b, the result is |code| / |x| (I - 2 r r^T
    + 2 b a^T) x, where all but the last x are constants.
    """
    fixed, code = lax.stop_gradient(x), lax.stop_gradient(quantised)
    size, length = (jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (fixed, code))
    a, b = fixed / jnp.maximum(size, eps), code / jnp.maximum(length, eps)
    r = (a + b) / jnp.maximum(jnp.linalg.norm(a + b, axis=-1, keepdims=True), eps)

    def along(v: Array) -> Array:
        return (x * v).sum(-1, keepdims=True)

    turned = (x - 2 * along(r) * r + 2 * along(a) * b) * (length / jnp.maximum(size, eps))
    return jnp.where(size < eps, straight_through(x, quantised), turned)


def codebook(codes: Float[Array, "K D"], counts: Float[Array, "K"] | None = None) -> Codebook:
    """A codebook that begins at `codes` with these average counts; by default with one each."""
    counts = jnp.ones(len(codes)) if counts is None else counts
    return {"codes": codes, "counts": counts, "sums": counts[:, None] * codes}


def ema_update(
    book: Codebook,
    x: Float[Array, "N D"],
    index: Int[Array, "N"],
    decay: float,
    eps: float = 1e-5,
) -> Codebook:
    """Moves the codes towards the means of their vectors (van den Oord et al. 2017, appendix A.1).

    Counts and sums are exponential averages, and each code is its sum divided by its count. Counts
    are smoothed by `eps` per code so that none is zero (Laplace).
    """
    count = len(book["codes"])
    chosen = jax.nn.one_hot(index, count, dtype=jnp.float32)
    batch_sums = jnp.matmul(chosen.T, x, precision=lax.Precision.HIGHEST)
    counts = decay * book["counts"] + (1 - decay) * chosen.sum(0)
    sums = decay * book["sums"] + (1 - decay) * batch_sums
    total = counts.sum()
    smooth = (counts + eps) / (total + count * eps) * total
    return {"codes": sums / smooth[:, None], "counts": counts, "sums": sums}


def restart(book: Codebook, x: Float[Array, "N D"], key: Array, threshold: float) -> Codebook:
    """Replaces codes whose average count is below `threshold` by vectors drawn from `x`.

    Their count becomes `threshold` (Dhariwal et al. 2020, Jukebox, section 3.1). Vectors are drawn
    with replacement, so two codes may be equal at first.
    """
    dead = book["counts"] < threshold
    drawn = x[jax.random.randint(key, (len(dead),), 0, len(x))]
    return {
        "codes": jnp.where(dead[:, None], drawn, book["codes"]),
        "counts": jnp.where(dead, threshold, book["counts"]),
        "sums": jnp.where(dead[:, None], threshold * drawn, book["sums"]),
    }


def kmeans(
    x: Float[Array, "N D"], key: Array, count: int, iterations: int = 10
) -> Float[Array, "K D"]:
    """`count` centres after Lloyd's `iterations`, starting at vectors drawn from `x`.

    A centre without vectors keeps its place.
    """
    start = x[jax.random.choice(key, len(x), (count,), replace=len(x) < count)]

    def move(centres: Array, _: None) -> tuple[Array, None]:
        one_hot_index = jax.nn.one_hot(nearest(x, centres), count, dtype=jnp.float32)
        sizes = one_hot_index.sum(0)[:, None]
        sums = jnp.matmul(one_hot_index.T, x, precision=lax.Precision.HIGHEST)
        return jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1), centres), None

    return lax.scan(move, start, None, length=iterations)[0]


def histogram(index: Int[Array, "*N"], count: int) -> Float[Array, "K"]:
    """The share of each of `count` codes in `index`."""
    return jnp.zeros(count).at[index.reshape(-1)].add(1.0) / index.size


def perplexity(shares: Float[Array, "K"]) -> Float[Array, ""]:
    """exp of the entropy of the codes' shares: the number of codes in use if used equally."""
    return jnp.exp(-jnp.sum(jnp.where(shares > 0, shares * jnp.log(shares), 0.0)))


def fsq(z: Float[Array, "*N D"], levels: Sequence[int], eps: float = 1e-3) -> Float[Array, "*N D"]:
    """Finite scalar quantisation: rounds dimension d to one of `levels[d]` values in [-1, 1].

    tanh bounds each dimension so that rounding gives `levels[d]` integers; the gradient passes
    straight through the rounding (Mentzer et al. 2024, section 3.1 and appendix A.1).
    """
    sizes = _sizes(levels)
    half = (sizes - 1) * (1 + eps) / 2
    offset = np.where(sizes % 2 == 0, 0.5, 0.0)
    bounded = jnp.tanh(z + np.arctanh(offset / half)) * half - offset
    return straight_through(bounded, jnp.round(bounded)) / (sizes // 2)


def fsq_index(code: Float[Array, "*N D"], levels: Sequence[int]) -> Int[Array, "*N"]:
    """The index of a code of `fsq`: its dimensions are the digits, the lowest first."""
    sizes = _sizes(levels)
    digits = jnp.round((code + 1) * (sizes // 2)).astype(jnp.int32)
    return (digits * _places(sizes)).sum(-1)


def fsq_code(index: Int[Array, "*N"], levels: Sequence[int]) -> Float[Array, "*N D"]:
    """The inverse of `fsq_index`."""
    sizes = _sizes(levels)
    digits = index[..., None] // _places(sizes) % sizes
    return digits / (sizes // 2) - 1.0


def _sizes(levels: Sequence[int]) -> np.ndarray:
    sizes = [int(level) for level in levels]
    if min(sizes) < 2 or math.prod(sizes) > 2**31 - 1:
        raise ValueError(
            f"levels {sizes}: expected at least 2 each, and no more codes together than a 32-bit "
            "index can name"
        )
    return np.array(sizes)


def _places(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[1], np.cumprod(sizes[:-1])]).astype(np.int32)
