"""Positions of vectors in a row or a grid: rotary and sinusoidal."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.config import ConfigError, require


class Rotation(NamedTuple):
    """The angles by which the pairs of a head are turned, as their cosines and sines."""

    cos: Float[Array, "B T 1 h"]
    sin: Float[Array, "B T 1 h"]


def frequencies(size: int, base: float = 10_000.0, scaling: tuple = ()) -> Float[np.ndarray, "h"]:
    """Radians per position for each of the h = size / 2 pairs of a head (Su et al. 2021, eq. 15).

    Args:
      size: of a head, H; even.
      base: the first pair turns by 1 radian per position, the last by nearly 1 / base.
      scaling: () for none. `("linear", factor)` divides all of them (Chen et al. 2023, eq. 4).
        `("llama3", factor, low, high, original)` divides those that turn fewer than `low` times
        within `original` positions, keeps those that turn more than `high` times, and interpolates
        in between (Llama Team 2024, arXiv:2407.21783).

    Raises:
      ConfigError: an odd size, or another scaling.
    """
    require(size % 2 == 0, "head_size", size, "an even number: rotary positions turn pairs")
    require(0 < base < math.inf, "rope_base", base, "a number above 0")
    unscaled = base ** (-np.arange(0, size, 2) / size)
    valid = all(isinstance(n, int | float) and 0 < n < math.inf for n in scaling[1:])
    match tuple(scaling):
        case ():
            return unscaled
        case ("linear", factor) if valid:
            return unscaled / factor
        case ("llama3", factor, low, high, original) if valid and high > low:
            turns = original * unscaled / (2 * math.pi)
            share = np.clip((turns - low) / (high - low), 0, 1)
            return unscaled * (share + (1 - share) / factor)
    raise ConfigError(
        f"rope_scaling={scaling!r}: expected (), ('linear', factor) or "
        "('llama3', factor, low, high, original) with high > low and all numbers above 0."
    )


def rotation(place: Int[Array, "B T"], frequencies: Float[np.ndarray, "h"]) -> Rotation:
    """The rotation of the vectors at `place`, float32."""
    angle = (place.astype(jnp.float32)[..., None] * frequencies.astype(np.float32))[:, :, None]
    return Rotation(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "B T N H"], by: Rotation) -> Float[Array, "B T N H"]:
    """Turns element i of each head with element i + h (Su et al. 2021, eq. 34), in x's dtype.

    The pairs are those of Llama's published weights; the paper pairs neighbouring elements. If the
    rotation has fewer than H / 2 angles, the elements from 2 h on stay as they are.
    """
    h = by.cos.shape[-1]
    turning, *rest = jnp.split(x, [2 * h], axis=-1) if 2 * h < x.shape[-1] else [x]
    first, second = jnp.split(turning.astype(jnp.float32), 2, axis=-1)
    turned = (first * by.cos - second * by.sin, second * by.cos + first * by.sin)
    turned = jnp.stack(turned, axis=-2).reshape(turning.shape).astype(x.dtype)
    return jnp.concatenate([turned, *rest], axis=-1) if rest else turned


def rotation_of_grid(height: int, width: int, size: int) -> Rotation:
    """The rotation of the vectors of a grid, row by row: [1, height * width, 1, size / 2].

    Half of a head's pairs turn by the row, half by the column (Heo et al. 2024, "axial"), each with
    the frequencies of a head of half the size. So the product of a query and a key depends only on
    the difference of their rows and columns.

    Raises:
      ConfigError: a size that is not a multiple of 4.
    """
    require(size % 4 == 0, "head_size", size, "a multiple of 4: half its pairs turn by the row")
    rows, columns = np.indices((height, width)).reshape(2, 1, -1)
    by = [rotation(jnp.asarray(place), frequencies(size // 2)) for place in (rows, columns)]
    return Rotation(*(jnp.concatenate(parts, axis=-1) for parts in zip(*by, strict=True)))


def sinusoidal_of_grid(height: int, width: int, features: int) -> Float[Array, "H W D"]:
    """Sinusoidal positions of the vectors of a grid, in the order of MAE and DiT.

    The first half of the features encodes the column, the second the row; each half has its sines
    before its cosines (He et al. 2022; Peebles & Xie 2023).

    Raises:
      ConfigError: features that are not a multiple of 4.
    """
    require(features % 4 == 0, "width", features, "a multiple of 4: sines and cosines of two axes")
    by = frequencies(features // 2)

    def along(length: int) -> Float[Array, "L h"]:
        angle = np.arange(length)[:, None] * by
        return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], axis=1), jnp.float32)

    shape = (height, width, features // 2)
    columns = jnp.broadcast_to(along(width), shape)
    rows = jnp.broadcast_to(along(height)[:, None], shape)
    return jnp.concatenate([columns, rows], axis=-1)


def sinusoidal(place: Int[Array, "*P"], features: int) -> Float[Array, "*P D"]:
    """Sines at the even elements, cosines at the odd ones (Vaswani et al. 2017, section 3.5)."""
    pair = jnp.arange(features) // 2
    angle = place.astype(jnp.float32)[..., None] * 10_000.0 ** (-2 * pair / features)
    return jnp.where(jnp.arange(features) % 2, jnp.cos(angle), jnp.sin(angle))


def relative_bucket(
    offset: Int[Array, "*P"], buckets: int, furthest: int, both: bool
) -> Int[Array, "*P"]:
    """Groups offsets of a key from its query: each short one alone, longer ones by their logarithm.

    Raffel et al. 2020, section 2.1, with the formula of the authors' code. Offsets of `furthest`
    and more share the last bucket.

    Args:
      offset: the place of the key minus that of the query.
      buckets: number of groups.
      furthest: the offset from which on all are in one group.
      both: whether keys after the query have half of the buckets; if not, they are in bucket 0.
    """
    half = buckets // 2 if both else buckets
    alone = half // 2
    apart = np.arange(furthest + 1)
    scale = np.float32((half - alone) / math.log(furthest / alone))
    logarithm = np.log(np.maximum(apart, alone).astype(np.float32) / np.float32(alone))
    far = np.minimum(alone + (logarithm * scale).astype(np.int32), half - 1)
    table = jnp.asarray(np.where(apart < alone, apart, far), jnp.int32)
    distance = jnp.abs(offset) if both else jnp.maximum(-offset, 0)
    bucket = table[jnp.minimum(distance, furthest)]
    return bucket + half * (offset > 0) if both else bucket
