"""What encoders and decoders between an image and a small image of vectors are checked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from genjax.config import ConfigError
from genjax.nn.functional import Functional, output_shape


def check_size(shape: tuple[int, int, int], halvings: int, option: str) -> None:
    """Refuses what cannot be halved so often.

    Args:
      shape: of the images [H, W, C].
      halvings: how often both sides are halved.
      option: the key of the config that says so.

    Raises:
      ConfigError: a height or width that is no multiple of 2^halvings.
    """
    height, width, _ = shape
    if height % 2**halvings or width % 2**halvings:
        raise ConfigError(
            f"{option}: images of {height} x {width} cannot be halved {halvings} times: ask for "
            f"less, or set dataset.image_size to a multiple of {2**halvings}."
        )


def check_mirrored(
    encoder: Functional, decoder: Functional, shape: tuple[int, int, int], features: int
) -> None:
    """Refuses a decoder that does not undo the encoder's strides.

    Args:
      encoder: image [B, H, W, C] -> vectors [B, h, w, D].
      decoder: vectors [B, h, w, features] -> image.
      shape: of the images [H, W, C].
      features: of the vectors that the decoder is given.

    Raises:
      ConfigError: images come back in another size.
    """
    code = output_shape(encoder, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    given = jax.ShapeDtypeStruct((*code[:3], features), jnp.float32)
    made = output_shape(decoder, given)[1:]
    if made != tuple(shape):
        raise ConfigError(
            f"config.model: encoder and decoder do not mirror each other: images of {shape} come "
            f"back as {made}. Give both the same levels."
        )
