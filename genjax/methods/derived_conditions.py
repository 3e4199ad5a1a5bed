"""Conditions of a diffusion model that are not in its data, but made of them or by stages.

embedding        the vector of the image by a stage, such as CLIP; from a caption, a prior draws it
low_resolution   the image itself, averaged over squares of pixels, with noise (Ho et al. 2022b);
                 from a caption, a stage draws it
text             the caption, replaced by an empty one in some training examples

They make up DALL-E 2's decoder and upsamplers (Ramesh et al. 2022). In training `Method.prepare`
makes them from a batch, with no gradient. In sampling they are made from what the user gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.checks import ConfigError, nearest, require
from genjax.data import captions
from genjax.method import Batch, DataSpec, Field, Method, Stage
from genjax.nn.pixels import to_float, to_uint8
from genjax.nn.positions import sinusoidal
from genjax.sampling import draw, paths
from genjax.sampling.conditions import Condition, required
from genjax.sampling.embeddings import slerp, text_diff, unit

EMBEDDING, SMALL, LEVEL, NOISE = "embedding", "low_resolution", "low_resolution_level", "noise"
LEVEL_FEATURES = 64
VECTORS = ("clip", "embedding_prior")  # the methods whose `apply` gives vectors of image and text
UNLISTED = {"field": ""}  # a condition with this fact is never taken from held-out examples

Made = dict[str, Array]


class Section(Protocol):
    """The options of a family that concern its derived conditions."""

    conditions: tuple[str, ...]
    embedding: str
    embedding_dropout: float
    text_dropout: float
    low_resolution: int
    low_resolution_stage: str
    low_resolution_noise: float


class Part(NamedTuple):
    """One or several derived conditions.

    Attributes:
      fields: what the network is told, by name.
      given: what a user may give for it, by name.
      make: (params, mutable, batch, key, train) -> the fields from a batch of the data.
      fill: (params, mutable, condition, key, num) -> the fields from what the user gave.
    """

    fields: dict[str, Field]
    given: dict[str, Field]
    make: Callable[[dict, dict, Batch, Array, bool], Made]
    fill: Callable[[dict, dict, Condition, Array, int], Made]


def parts(o: Section, spec: DataSpec, stages: Mapping[str, Stage]) -> tuple[Part, ...]:
    """The derived conditions that the options ask for.

    Raises:
      ConfigError: a stage is missing or of another kind, or sizes do not fit.
    """
    found = []
    if o.embedding:
        found.append(_embedding(o, spec, stages))
    if o.low_resolution:
        found.append(_low_resolution(o, spec, stages))
    elif o.low_resolution_stage:
        raise ConfigError(
            f"diffusion.low_resolution_stage={o.low_resolution_stage!r} draws a small image, but "
            "diffusion.low_resolution=0: set it to that image's side."
        )
    if o.text_dropout:
        found.append(_text(o, spec))
    return tuple(found)


def extended(o: Any, spec: DataSpec, found: tuple[Part, ...]) -> tuple[Any, DataSpec]:
    """Options and spec in which derived conditions are fields like those of the data.

    Raises:
      ConfigError: the data have a field of such a name.
    """
    fields = {name: f for part in found for name, f in part.fields.items() if name != "text"}
    if taken := fields.keys() & spec.fields.keys():
        raise ConfigError(f"{spec.name} has a field {sorted(taken)}: name it otherwise.")
    o = o._replace(conditions=(*o.conditions, *fields))
    return o, spec._replace(fields={**spec.fields, **fields})


def joined(method: Method, found: tuple[Part, ...]) -> Method:
    """The method with its derived conditions made from batches, and from what a user gives."""
    if not found:
        return method

    def made(params: dict, mutable: dict, batch: Batch, key: Array, train: bool) -> Made:
        new = dict(batch)
        for i, part in enumerate(found):
            new |= part.make(params, mutable, batch, jax.random.fold_in(key, i), train)
        return new

    def prepare(params: dict, mutable: dict, batch: Batch, key: Array, step: Array) -> Made:
        return made(params, mutable, batch, key, True)

    def evaluate(params: dict, mutable: dict, batch: Batch, key: Array) -> dict[str, Array]:
        batch = made(params, mutable, batch, jax.random.fold_in(key, 1), False)
        return method.evaluate(params, mutable, batch, key)

    def sample(
        params: dict, mutable: dict, key: Array, num: int, condition: Condition, **options: Any
    ) -> Array:
        known = {name: value for name, value in condition.items() if name in method.conditions}
        for i, part in enumerate(found):
            own = jax.random.fold_in(key, 2**20 + i)
            known |= part.fill(params, mutable, condition, own, num)
        return method.sample(params, mutable, key, num, known, **options)

    derived = {name for part in found for name in part.fields if name != "text"}
    own = {name: field for name, field in method.conditions.items() if name not in derived}
    given = {name: field for part in found for name, field in part.given.items()}
    return method._replace(
        prepare=prepare, evaluate=evaluate, sample=sample, conditions={**given, **own}
    )


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


# ---- vectors of images and captions --------------------------------------------------------------


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


def _embedding(o: Section, spec: DataSpec, stages: Mapping[str, Stage]) -> Part:
    """The vector of the image, hidden in some training examples."""
    target = spec.generated
    is_image = target.kind == "image" and target.dtype == np.uint8
    require(is_image, "diffusion.embedding", o.embedding, "'': the data are not 8-bit images")
    vectors = vectors_of("diffusion.embedding", o.embedding, spec, stages)
    field = vectors.field
    image = vectors.image._replace(facts=UNLISTED if vectors.draws else {})
    share = Field("real", (), np.dtype(np.float32), UNLISTED)
    given = {EMBEDDING: field._replace(facts=UNLISTED), "image": image}
    given |= {"other_image": image._replace(facts=UNLISTED), "mix": share}
    if (text := vectors.stage.spec.fields.get("text")) is not None:
        hidden = text._replace(facts={**text.facts, **UNLISTED})
        given |= {name: hidden for name in ("before", "after")}
        given |= {"text": text, "other_text": hidden} if vectors.draws else {}

    def make(params: dict, mutable: dict, batch: Batch, key: Array, train: bool) -> Made:
        z = vectors.of_images(params, mutable, batch[spec.target])
        if train:
            z = _dropped(z, o.embedding_dropout, key)
        return {EMBEDDING: z}

    def one(
        params: dict, mutable: dict, condition: Condition, key: Array, num: int, other: str
    ) -> Array | None:
        """The vector of an image or of a caption; the first or, if `other` is set, the second."""
        if not other and EMBEDDING in condition:
            return unit(jnp.asarray(condition[EMBEDDING]))
        if f"{other}image" in condition:
            return vectors.of_images(params, mutable, condition[f"{other}image"])
        if f"{other}text" in condition and vectors.draws:
            text = {"text": condition[f"{other}text"]}
            return drawn(vectors.stage, params, mutable, key, num, text)
        return None

    def fill(params: dict, mutable: dict, condition: Condition, key: Array, num: int) -> Made:
        z = one(params, mutable, condition, key, num, "")
        if z is None:
            if "text" not in condition or not o.embedding_dropout:
                raise ConfigError(
                    "the model needs the vector of an image: give --image=FILE"
                    + (", --text=CAPTION" if vectors.draws or o.embedding_dropout else "")
                    + " or --embedding=NUMBERS. With a prior as diffusion.embedding, or with "
                    "diffusion.embedding_dropout > 0, a caption is enough."
                )
            return {EMBEDDING: jnp.zeros((num, vectors.size))}
        share = jnp.asarray(condition.get("mix", 0.5), jnp.float32)
        second = one(params, mutable, condition, key, num, "other_")
        if "before" in condition or "after" in condition:
            pair = [required(condition, name) for name in ("before", "after")]
            texts = [vectors.of_texts(params, mutable, text) for text in pair]
            z = text_diff(z, *texts, share)
        elif second is not None:
            z = slerp(z, second, share)
        elif "mix" in condition:
            raise ConfigError(
                "--mix is given without a second image or caption: give --other_image=FILE"
                + (", --other_text=CAPTION" if vectors.draws else "")
                + ", or --before=CAPTION and --after=CAPTION; or leave --mix out."
            )
        return {EMBEDDING: z}

    return Part({EMBEDDING: field}, given, make, fill)


def _dropped(x: Float[Array, "B E"], rate: float, key: Array) -> Float[Array, "B E"]:
    """x with each example set to zero with this probability: hidden from the network."""
    return jnp.where(jax.random.bernoulli(key, rate, (len(x), 1)), 0.0, x)


# ---- captions ------------------------------------------------------------------------------------


def empty(field: Field) -> Int[np.ndarray, "T"]:
    """The tokens of a caption without words."""
    begins = getattr(field.facts.get("tokenizer"), "begins", ())
    ids = np.concatenate([begins, [field.facts["special"]["eos"]]]).astype(np.int32)
    return captions.padded(ids, field)


def _text(o: Section, spec: DataSpec) -> Part:
    """The caption, replaced by an empty one in some training examples and if none is given."""
    expected = "0, or diffusion.conditions with 'text'"
    require("text" in o.conditions, "diffusion.text_dropout", o.text_dropout, expected)
    field = spec.fields["text"]
    blank = empty(field)

    def make(params: dict, mutable: dict, batch: Batch, key: Array, train: bool) -> Made:
        text = batch["text"]
        if not train:
            return {"text": text}
        dropped = jax.random.bernoulli(key, o.text_dropout, (len(text), 1))
        return {"text": jnp.where(dropped, blank, text)}

    def fill(params: dict, mutable: dict, condition: Condition, key: Array, num: int) -> Made:
        return {"text": condition.get("text", jnp.tile(blank, (num, 1)))}

    return Part({"text": field}, {}, make, fill)


# ---- the image at a lower resolution -------------------------------------------------------------


def smaller(image: Float[Array, "B H W C"], side: int) -> Float[Array, "B h w C"]:
    """The means over squares of pixels: an image whose shorter side is `side`."""
    B, H, W, C = image.shape
    k = min(H, W) // side
    return image.reshape(B, H // k, k, W // k, k, C).mean((2, 4))


def augmented(
    image: Float[Array, "B h w C"], level: Float[Array, "B"], noise: Float[Array, "B h w C"]
) -> Float[Array, "B h w C"]:
    """An image with noise: cos(pi s / 2) x + sin(pi s / 2) epsilon for the level s from 0 to 1.

    Noise augmentation of Ho et al. 2022 ("Cascaded Diffusion Models", section 4.2), on the cosine
    path.
    """
    path = paths.cosine()
    return paths.noised(paths.levels(path, jnp.clip(level, path.first, path.last)), image, noise)


def _low_resolution(o: Section, spec: DataSpec, stages: Mapping[str, Stage]) -> Part:
    """The image at a lower resolution, with noise, and the level of that noise."""
    target, side = spec.generated, o.low_resolution
    is_image = target.kind == "image" and target.dtype == np.uint8
    require(is_image, "diffusion.low_resolution", side, "0: the data are not 8-bit images")
    H, W, C = target.shape
    fits = side < min(H, W) and min(H, W) % side == 0 and H % (min(H, W) // side) == 0
    fits = fits and W % (min(H, W) // side) == 0
    expected = f"a smaller side that divides the images' {H} x {W}"
    require(fits, "diffusion.low_resolution", side, expected)
    k = min(H, W) // side
    shape, name = (H // k, W // k, C), o.low_resolution_stage
    base = stage_of("diffusion.low_resolution_stage", name, stages) if name else None
    if base is not None:
        field = base.method.output or base.spec.generated
        if field.kind != "image" or tuple(field.shape) != shape:
            raise ConfigError(
                f"diffusion.low_resolution={side}: the small image is {shape}, but the stage "
                f"{name!r} draws a field of kind {field.kind!r} and shape {tuple(field.shape)}. "
                f"Give a stage that draws such images, or another dataset.image_size."
            )
    picture = Field("image", shape, np.dtype(np.uint8), UNLISTED if base else {"field": SMALL})
    level = Field("real", (), np.dtype(np.float32), UNLISTED)
    given = {**(dict(base.method.conditions) if base else {}), SMALL: picture, NOISE: level}

    def told(image: Array, level: Array, noise: Array) -> Made:
        features = sinusoidal(1000.0 * level, LEVEL_FEATURES)
        return {SMALL: augmented(image, level, noise), LEVEL: features}

    def make(params: dict, mutable: dict, batch: Batch, key: Array, train: bool) -> Made:
        image = smaller(to_float(batch[spec.target]), side)
        count = len(image)
        level = jnp.full((count,), o.low_resolution_noise)
        level = jax.random.uniform(jax.random.fold_in(key, 0), (count,)) if train else level
        return told(image, level, jax.random.normal(jax.random.fold_in(key, 1), image.shape))

    def fill(params: dict, mutable: dict, condition: Condition, key: Array, num: int) -> Made:
        if SMALL in condition:
            image = condition[SMALL]
        elif base is not None:
            own = {n: v for n, v in condition.items() if n in base.method.conditions}
            image = drawn(base, params, mutable, jax.random.fold_in(key, 0), num, own)
        else:
            image = required(condition, SMALL)
        if image.shape != (num, *shape):
            raise ConfigError(
                f"{SMALL}: expected images {(num, *shape)}, which the model enlarges to {H} x {W}, "
                f"got {image.shape}. Another size needs a model of its own: diffusion.{SMALL} and "
                "dataset.image_size."
            )
        default = jnp.full((num,), o.low_resolution_noise)
        level = jnp.clip(jnp.asarray(condition.get(NOISE, default), jnp.float32), 0.0, 1.0)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(1 + jnp.arange(num))
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        return told(to_float(jnp.asarray(image)), level, noise)

    fields = {
        SMALL: Field("real", shape, np.dtype(np.float32), {}),
        LEVEL: Field("real", (LEVEL_FEATURES,), np.dtype(np.float32), {}),
    }
    return Part(fields, given, make, fill)
