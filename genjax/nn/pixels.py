"""Conversions between 8-bit images and inputs of networks."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def to_float(image: UInt8[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Maps 0 ... 255 onto [-1, 1] (Ho et al. 2020, section 3.3)."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: Float[Array, "B H W C"]) -> UInt8[Array, "B H W C"]:
    """Inverts `to_float`: rounds to the nearest of the 256 levels, and clips values outside."""
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def binarised(key: Array, image: UInt8[Array, "B *shape"]) -> Float[Array, "B *shape"]:
    """Draws each pixel as 1 with probability image / 255, else 0.

    Black stays 0 and white 1; between them the probability is accurate to 2^-16, because two pixels
    share the halves of one 32-bit number. That takes a third of `jax.random.bernoulli`'s time.
    """
    flat = image.reshape(len(image), math.prod(image.shape[1:])).astype(jnp.uint32) << 16
    half = -(-flat.shape[1] // 2)
    bits = jax.random.bits(key, (len(image), half), jnp.uint32)
    first = (bits & 0xFFFF) * 255 < flat[:, :half]
    second = ((bits >> 16) * 255)[:, : flat.shape[1] - half] < flat[:, half:]
    drawn = jnp.concatenate([first, second], axis=1).astype(jnp.float32)
    return drawn.reshape(image.shape)


def nearness(
    made: Float[Array, "B H W C"], x: Float[Array, "B H W C"]
) -> dict[str, Float[Array, "B"]]:
    """The errors of images in [-1, 1], rounded to 8 bits, against `x`.

    `mse` is the mean squared error on the scale [-1, 1], `psnr` the peak signal-to-noise ratio in
    dB, at most 106.
    """
    mse = jnp.square(to_float(to_uint8(made)) - x).mean(tuple(range(1, x.ndim)))
    return {"mse": mse, "psnr": 10 * jnp.log10(4 / jnp.maximum(mse, 1e-10))}
