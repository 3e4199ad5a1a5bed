"""Stages as sources: of vectors of images and captions, and of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.checks import ConfigError, nearest
from genjax.method import DataSpec, Field, Stage
from genjax.nn.pixels import to_float, to_uint8
from genjax.sampling import draw
from genjax.sampling.conditions import Condition

VECTORS = ("clip", "embedding_prior")  # the methods whose `apply` gives vectors of image and text


def stage_of(key: str, name: str, stages: Mapping[str, Stage]) -> Stage:
    """The stage that the setting `key` names.

    Raises:
      ConfigError: there is no such stage.
    """
    if name in stages:
        return stages[name]
    raise ConfigError(
        f"{key}={name!r}: no such stage. "
        + (f"Nearest: {nearest(name, stages)}." if stages else "config.stages names none.")
    )


def drawn(
    stage: Stage, params: dict, mutable: dict, key: Array, num: int, condition: Condition
) -> Array:
    """Samples of a stage, with the default options of its config."""
    fixed, arrays = draw.planned(stage.method, {})
    variables = stage.own(params), stage.own(mutable)
    return stage.method.sample(*variables, key, num, condition, **fixed, **arrays)


class Vectors(NamedTuple):
    """A stage that gives vectors of length 1 of images and of captions.

    Attributes:
      stage: the stage: a CLIP, or a prior, which has a CLIP as its own stage.
      size: E.
      image: the field of its images.
      draws: whether it also draws vectors of images for captions: a prior.
    """

    stage: Stage
    size: int
    image: Field
    draws: bool

    @property
    def field(self) -> Field:
        """The field of its vectors, whose elements have a mean square of 1 / E."""
        std = np.float32(self.size**-0.5)
        return Field("real", (self.size,), np.dtype(np.float32), {"std": std})

    def of_images(self, params: dict, mutable: dict, image: Array) -> Float[Array, "B E"]:
        """The vectors of images, which are resized if the stage's have another size."""
        if image.shape[1:] != self.image.shape:
            resized = (len(image), *self.image.shape[:2], image.shape[-1])
            image = to_uint8(jax.image.resize(to_float(image), resized, "linear"))
        return self.stage.apply(params, mutable, {"image": image})["image"]

    def of_texts(self, params: dict, mutable: dict, text: Array) -> Float[Array, "B E"]:
        """The vectors of captions."""
        return self.stage.apply(params, mutable, {"text": text})["text"]


def vectors_of(key: str, name: str, spec: DataSpec, stages: Mapping[str, Stage]) -> Vectors:
    """The stage that the setting `key` names, as a source of vectors.

    Raises:
      ConfigError: it has no vectors, other channels, or stands beside another source of vectors.
    """
    stage = stage_of(key, name, stages)
    if stage.config.method not in VECTORS:
        raise ConfigError(
            f"{key}={name!r}: a run of method {stage.config.method!r}, which gives no vectors of "
            "images and captions. Give one of method {' or '.join(VECTORS)}."
        )
    for other in stages:
        if other != name and stages[other].config.method in VECTORS:
            raise ConfigError(
                f"{key}={name!r}, but the stage {other!r} has vectors too, which may be those of "
                "another CLIP. A prior has the CLIP that it was trained with: name the prior here, "
                "and leave out the other stage."
            )
    image, target = stage.spec.fields["image"], spec.fields.get("image", spec.generated)
    if image.shape[-1] != target.shape[-1]:
        raise ConfigError(
            f"{key}={name!r}: its images have {image.shape[-1]} channels, and those of {spec.name} "
            f"have {target.shape[-1]}. Give a stage trained on such images."
        )
    batch = {n: jnp.zeros((1, *f.shape), f.dtype) for n, f in stage.spec.fields.items()}
    apply, init = stage.method.apply, stage.method.init
    found = jax.eval_shape(lambda: apply(*init(jax.random.key(0), batch), batch))
    draws = stage.config.method == "embedding_prior"
    return Vectors(stage, found["image"].shape[-1], image, draws)
