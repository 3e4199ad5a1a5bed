"""Checks of encoders and decoders that map between an image and a small grid of vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from genjax.config import ConfigError
from genjax.nn.functional import Functional, output_shape


def check_size(shape: tuple[int, int, int], halvings: int, option: str) -> None:
    """Raises if the sides of the images cannot be halved that often.

    Args:
      shape: of the images [H, W, C].
      halvings: how often both sides are halved.
      option: the config key that sets this number, for the error message.

    Raises:
      ConfigError: the height or width is not a multiple of 2^halvings.
    """
    height, width, _ = shape
    if height % 2**halvings or width % 2**halvings:
        raise ConfigError(
            f"{option}: images of {height} x {width} cannot be halved {halvings} times: use "
            f"fewer halvings, or set dataset.image_size to a multiple of {2**halvings}."
        )


def check_mirrored(
    encoder: Functional, decoder: Functional, shape: tuple[int, int, int], features: int
) -> None:
    """Raises if the decoder does not undo the encoder's strides.

    Args:
      encoder: image [B, H, W, C] -> vectors [B, h, w, D].
      decoder: vectors [B, h, w, features] -> image.
      shape: of the images [H, W, C].
      features: length of the vectors that go into the decoder.

    Raises:
      ConfigError: decoded images have another size.
    """
    code_shape = output_shape(encoder, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    code_input = jax.ShapeDtypeStruct((*code_shape[:3], features), jnp.float32)
    decoded_shape = output_shape(decoder, code_input)[1:]
    if decoded_shape != tuple(shape):
        raise ConfigError(
            "config.model: encoder and decoder do not mirror each other: images of shape "
            f"{tuple(shape)} are decoded to shape {decoded_shape}. Give both the same number of "
            "levels."
        )
