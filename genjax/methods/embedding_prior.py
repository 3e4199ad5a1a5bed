"""Diffusion over the vectors of images, given captions: DALL-E 2's prior (Ramesh et al. 2022).

A frozen stage of method "clip" gives the vectors of images and captions. The prior draws a vector
for a caption (section 2.2): the network sees the caption's tokens and its vector. The process is
that of `methods.diffusion`, on vectors [1, 1, E] whose elements have a mean square of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from genjax.checks import Range, require
from genjax.config import read_options
from genjax.method import Batch, DataSpec, Field, Method, Stage
from genjax.methods import diffusion
from genjax.methods.denoiser import Denoiser, network
from genjax.methods.derived_conditions import EMBEDDING
from genjax.methods.vectors import Vectors, vectors_of
from genjax.sampling import paths
from genjax.sampling.conditions import Condition, required
from genjax.sampling.embeddings import unit

CAPTION = "text_embedding"


class Options(NamedTuple):
    """The `embedding_prior` section of a config; `diffusion` has the options of the process.

    Attributes:
      clip: the stage that gives the vectors of images and captions.
      candidates: vectors drawn for each caption, of which the one nearest to the caption's vector
        is the sample (section 2.2: 2).
    """

    clip: str = "clip"
    candidates: Annotated[int, Range(1, 1000)] = 2


def build(config: ConfigDict, spec: DataSpec, stages: Mapping[str, Stage]) -> Method:
    """The family for images with captions.

    Raises:
      ConfigError: no stage gives vectors, the data have no captions, or an option is out of range.
    """
    o = read_options(config.embedding_prior, "embedding_prior", Options)
    vectors = vectors_of("embedding_prior.clip", o.clip, spec, stages)
    text = config.diffusion.conditions
    require("text" in text, "diffusion.conditions", text, "('text',): a prior is told captions")
    for name in (
        "embedding",
        "embedding_dropout",
        "low_resolution",
        "text_dropout",
        "text_encoder",
    ):
        value = config.diffusion.get(name)
        require(not value, f"diffusion.{name}", value, "none: a prior has no such condition")
    std, real = vectors.field.facts, np.dtype(np.float32)
    drawn = Field("code", (1, 1, vectors.size), real, std)
    plain = spec._replace(fields={**spec.fields, EMBEDDING: drawn}, target=EMBEDDING)
    options = diffusion.options_from_config(config.diffusion, plain)
    own = plain._replace(fields={**plain.fields, CAPTION: vectors.field})
    options = options._replace(conditions=(*options.conditions, CAPTION))
    channels = vectors.size * (2 if options.variance == "learned" else 1)
    chosen = network(config, own, channels, options)
    dtype = jnp.dtype(config.precision)
    method = diffusion.from_network(chosen.net, options, own, chosen.rules, chosen.project, dtype)
    model = diffusion.denoiser_of(chosen.net, options, own, dtype)
    return method._replace(
        prepare=partial(prepare, vectors),
        evaluate=partial(evaluate, vectors, model, method),
        sample=partial(sample, vectors, o.candidates, method),
        plan=partial(diffusion.plan, options, model.path),  # other texts need vectors of their own
        conditions={n: f for n, f in method.conditions.items() if n != CAPTION},
        output=Field("real", (vectors.size,), real, {}),
        apply=vectors.stage.apply,
    )


def prepare(
    vectors: Vectors, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> dict[str, Array]:
    """The batch with the vectors of its images and captions."""
    image = vectors.of_images(params, mutable, batch["image"])
    caption = vectors.of_texts(params, mutable, batch["text"])
    return {**batch, EMBEDDING: image[:, None, None], CAPTION: caption}


def evaluate(
    vectors: Vectors,
    model: Denoiser,
    method: Method,
    params: dict,
    mutable: dict,
    batch: Batch,
    key: Array,
) -> dict[str, Float[Array, "B"]]:
    """The metrics of diffusion, and cosines with the image's own vector.

    `cosine` is that of the vector that the network predicts from noise alone: if it is exact, the
    mean of the vectors that fit the caption. `caption_cosine` is that of the caption's vector,
    which needs no prior.
    """
    batch = prepare(vectors, params, mutable, batch, key, jnp.int32(0))
    metrics = method.evaluate(params, mutable, batch, key)
    image, path = batch[EMBEDDING], model.path
    last = jnp.full((len(image),), path.steps - 1 if path.steps else path.last)
    at = paths.tabulated(path, last)
    noise = jax.random.normal(jax.random.fold_in(key, 1), image.shape)
    variables = params["denoiser"], mutable["denoiser"]
    cond = model.conditioning(variables[0], model.known(batch))
    predicted = model.predict(*variables, paths.noised(at, jnp.zeros_like(image), noise), at, cond)
    image, mean = image[:, 0, 0], unit(predicted.x0[:, 0, 0])
    metrics["cosine"] = (mean * image).sum(-1)
    return metrics | {"caption_cosine": (batch[CAPTION] * image).sum(-1)}


def sample(
    vectors: Vectors,
    candidates: int,
    method: Method,
    params: dict,
    mutable: dict,
    key: Array,
    num: int,
    condition: Condition,
    **options: Any,
) -> Float[Array, "B E"]:
    """Draws vectors of length 1 for captions: of each caption's candidates, the nearest to it."""
    text = jnp.asarray(required(condition, "text"))
    caption = vectors.of_texts(params, mutable, text)
    known = {**condition, "text": text, CAPTION: caption}
    known = {name: jnp.repeat(value, candidates, axis=0) for name, value in known.items()}
    drawn = method.sample(params, mutable, key, num * candidates, known, **options)
    return nearest(unit(drawn[:, 0, 0].reshape(num, candidates, -1)), caption)


def nearest(x: Float[Array, "B K E"], to: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """Of the K vectors of each example, the one with the largest product with `to`."""
    best = (x * to[:, None]).sum(-1).argmax(1)
    return jnp.take_along_axis(x, best[:, None, None], axis=1)[:, 0]
