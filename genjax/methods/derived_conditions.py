"""Conditions of a diffusion model that are not in its data, but made of them or by stages.

embedding        the vector of the image by a stage, such as CLIP; from a caption, a prior draws it
low_resolution   the image itself, averaged over squares of pixels, with noise (Ho et al. 2022b);
                 from a caption, a stage draws it
text             the caption, replaced by an empty one in some training examples
text_vectors     the vectors of the caption's tokens by a stage, a frozen text encoder, as in Imagen
                 (Saharia et al. 2022) and Stable Diffusion

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

from genjax.checks import ConfigError, require
from genjax.data import captions
from genjax.method import Batch, DataSpec, Field, Method, Stage
from genjax.methods import starts
from genjax.methods.composition import Prompts
from genjax.methods.vectors import Vectors, drawn, stage_of, vectors_of
from genjax.modalities.label import NAME as LABEL
from genjax.nn.pixels import to_float
from genjax.nn.positions import sinusoidal
from genjax.sampling import paths
from genjax.sampling.conditions import SHARE, UNLISTED, Condition, labels, required
from genjax.sampling.embeddings import slerp, text_diff, unit

EMBEDDING, TEXT_VECTORS, SMALL, LEVEL, NOISE = (
    "embedding",
    "text_vectors",
    "low_resolution",
    "low_resolution_level",
    "noise",
)
LEVEL_FEATURES = 64

Made = dict[str, Array]


class Section(Protocol):
    """The options of a family that concern its derived conditions."""

    conditions: tuple[str, ...]
    embedding: str
    embedding_dropout: float
    text_dropout: float
    text_encoder: str
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
      prompts: (params, mutable, prompts) -> the vectors of other prompts, if texts become vectors.
      shows: the name in `given` under which a picture itself gives the fields; "": it does not.
    """

    fields: dict[str, Field]
    given: dict[str, Field]
    make: Callable[[dict, dict, Batch, Array, bool], Made]
    fill: Callable[[dict, dict, Condition, Array, int], Made]
    prompts: Callable[[dict, dict, Prompts], Prompts] | None = None
    shows: str = ""


def parts(o: Section, spec: DataSpec, stages: Mapping[str, Stage]) -> tuple[Part, ...]:
    """The derived conditions that the options ask for.

    Raises:
      ConfigError: a stage is missing or of another kind, or sizes do not fit.
    """
    found = []
    rate, expected = o.embedding_dropout, "0 without diffusion.embedding"
    require(bool(o.embedding) or not rate, "diffusion.embedding_dropout", rate, expected)
    if o.embedding:
        only_reads = {o.text_encoder} - {o.embedding}
        sources = {name: stage for name, stage in stages.items() if name not in only_reads}
        found.append(_embedding(o, spec, sources))
    if o.low_resolution:
        found.append(_low_resolution(o, spec, stages))
    elif o.low_resolution_stage:
        raise ConfigError(
            f"diffusion.low_resolution_stage={o.low_resolution_stage!r} draws a small image, but "
            "diffusion.low_resolution=0: set it to that image's side."
        )
    if o.text_dropout or o.text_encoder:
        found.append(_text(o, spec, stages))
    return tuple(found)


def extended(o: Any, spec: DataSpec, found: tuple[Part, ...]) -> tuple[Any, DataSpec]:
    """Options and spec in which derived conditions are fields like those of the data.

    Raises:
      ConfigError: the data have a field of such a name.
    """
    fields = {name: f for part in found for name, f in part.fields.items() if name != "text"}
    if taken := fields.keys() & spec.fields.keys():
        raise ConfigError(f"{spec.name} has a field {sorted(taken)}: name it otherwise.")
    own = (name for name in o.conditions if name != "text" or TEXT_VECTORS not in fields)
    o = o._replace(conditions=(*own, *fields))
    return o, spec._replace(fields={**spec.fields, **fields})


def joined(method: Method, found: tuple[Part, ...], spec: DataSpec) -> Method:
    """The method with its derived conditions made from batches, and from what a user gives.

    Labels that are not given are drawn once, for the method and its stages.
    """
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

    def of_picture(
        params: dict, mutable: dict, condition: Condition, key: Array, num: int, start: str
    ) -> Made:
        """The conditions that describe a picture to begin with; none if nothing is known of it."""
        prefix = starts.of(start, "")
        given = {n.removeprefix(prefix): v for n, v in condition.items() if n.startswith(prefix)}
        given |= {part.shows: condition[start] for part in found if part.shows}
        described = {name: value for name, value in given.items() if name in method.conditions}
        try:
            for i, part in enumerate(found if given else ()):
                own = jax.random.fold_in(key, 2**20 + i)
                described |= part.fill(params, mutable, given, own, num)
        except ConfigError as error:
            raise ConfigError(
                f"--{start} is described by conditions of its own, named --{prefix}NAME: {error}"
            ) from error
        return {starts.of(start, name): value for name, value in described.items()}

    def sample(
        params: dict, mutable: dict, key: Array, num: int, condition: Condition, **options: Any
    ) -> Array:
        if LABEL in method.conditions and LABEL not in condition:
            label = labels(spec, True, num, {}, jax.random.fold_in(key, 2**20 - 1))
            condition = {**condition, LABEL: label}
        known = {name: value for name, value in condition.items() if name in method.conditions}
        if starts.OTHER not in condition and any(starts.MIX in part.given for part in found):
            known.pop(starts.MIX, None)  # it is of vectors alone
        for i, part in enumerate(found):
            own = jax.random.fold_in(key, 2**20 + i)
            known |= part.fill(params, mutable, condition, own, num)
            if part.prompts and "prompts" in options:
                options["prompts"] = part.prompts(params, mutable, options["prompts"])
        for i, start in enumerate((starts.START, starts.OTHER), 1):
            if start in condition and options.get("inversion") is not None:
                own = jax.random.fold_in(key, 2**20 - 1 - i)
                known |= of_picture(params, mutable, condition, own, num, start)
        return method.sample(params, mutable, key, num, known, **options)

    derived = {name for part in found for name in part.fields if name != "text"}
    derived |= {starts.of(s, name) for s in (starts.START, starts.OTHER) for name in derived}
    own = {name: field for name, field in method.conditions.items() if name not in derived}
    given = {name: field for part in found for name, field in part.given.items()}
    if starts.START in own and TEXT_VECTORS in derived:
        given |= starts.described({"text": given["text"]})
    return method._replace(
        prepare=prepare, evaluate=evaluate, sample=sample, conditions={**given, **own}
    )


# ---- the vector of the image --------------------------------------------------------------------


class Embedding(NamedTuple):
    """The vector of the image, hidden in some training examples.

    Attributes:
      vectors: the stage that gives it.
      target: the name of the image's field.
      dropout: share of training examples with the vector hidden.
    """

    vectors: Vectors
    target: str
    dropout: float

    def make(self, params: dict, mutable: dict, batch: Batch, key: Array, train: bool) -> Made:
        """The vectors of a batch's images."""
        z = self.vectors.of_images(params, mutable, batch[self.target])
        return {EMBEDDING: _dropped(z, self.dropout, key) if train else z}

    def fill(self, params: dict, mutable: dict, condition: Condition, key: Array, num: int) -> Made:
        """The vectors that a user gives, by numbers, images or captions, and mixes of two.

        Raises:
          ConfigError: nothing that gives a vector, or half of a mix.
        """
        draws, variables = self.vectors.draws, (params, mutable)
        first = [name for name in (EMBEDDING, "image") if name in condition]
        pair = [name for name in ("before", "after") if name in condition]
        others = [name for name in ("other_image", "other_text") if name in condition]
        if len(first) > 1 or len(others) + bool(pair) > 1:
            named = ", ".join(
                f"--{n}" for n in (*(first if len(first) > 1 else ()), *others, *pair)
            )
            raise ConfigError(
                f"{named}: expected one first vector, and one that it is mixed with. Leave one out."
            )
        z = self._one(*variables, condition, key, num, "")
        if z is None:
            if "text" not in condition or not self.dropout or others or pair or "mix" in condition:
                raise ConfigError(
                    "the model needs the vector of an image: give --image=FILE"
                    + (", --text=CAPTION" if draws or self.dropout else "")
                    + " or --embedding=NUMBERS. With a prior as diffusion.embedding, or with "
                    "diffusion.embedding_dropout > 0, a caption is enough."
                )
            return {EMBEDDING: jnp.zeros((num, self.vectors.size))}
        share = jnp.asarray(condition.get("mix", 0.5), jnp.float32)
        if pair:
            given = [required(condition, name) for name in ("before", "after")]
            texts = [self.vectors.of_texts(*variables, text) for text in given]
            return {EMBEDDING: text_diff(z, *texts, share)}
        second = self._one(*variables, condition, key, num, "other_")
        if second is not None:
            return {EMBEDDING: slerp(z, second, share)}
        if "mix" in condition and starts.OTHER not in condition:
            raise ConfigError(
                "--mix is given without a second image or caption: give --other_image=FILE"
                + (", --other_text=CAPTION" if draws else "")
                + ", or --before=CAPTION and --after=CAPTION; or leave --mix out."
            )
        return {EMBEDDING: z}

    def _one(
        self, params: dict, mutable: dict, condition: Condition, key: Array, num: int, prefix: str
    ) -> Array | None:
        """The vector of an image or of a caption: of the first, or with a prefix of the other."""
        image, text = f"{prefix}image", f"{prefix}text"
        if not prefix and EMBEDDING in condition:
            return unit(jnp.asarray(condition[EMBEDDING]))
        if image in condition:
            return self.vectors.of_images(params, mutable, condition[image])
        if text in condition and self.vectors.draws:
            caption = {"text": condition[text]}
            return drawn(self.vectors.stage, params, mutable, key, num, caption)
        return None


def _embedding(o: Section, spec: DataSpec, stages: Mapping[str, Stage]) -> Part:
    target = spec.generated
    is_image = target.kind == "image" and target.dtype == np.uint8
    require(is_image, "diffusion.embedding", o.embedding, "'': the data are not 8-bit images")
    vectors = vectors_of("diffusion.embedding", o.embedding, spec, stages)
    text = vectors.stage.spec.fields["text"]
    hidden = text._replace(facts={**text.facts, **UNLISTED})
    other = vectors.image._replace(facts=UNLISTED)
    given = {
        EMBEDDING: vectors.field._replace(facts=UNLISTED),
        "image": other if vectors.draws else vectors.image._replace(facts={}),
        "other_image": other,
        "before": hidden,
        "after": hidden,
        "mix": Field("real", (), np.dtype(np.float32), SHARE),
    }
    given |= {"text": text, "other_text": hidden} if vectors.draws else {}
    made = Embedding(vectors, spec.target, o.embedding_dropout)
    return Part({EMBEDDING: vectors.field}, given, made.make, made.fill, shows="image")


def _dropped(x: Float[Array, "B E"], rate: float, key: Array) -> Float[Array, "B E"]:
    """x with each example set to zero with this probability: hidden from the network."""
    return jnp.where(jax.random.bernoulli(key, rate, (len(x), 1)), 0.0, x)


# ---- captions ------------------------------------------------------------------------------------


def empty(field: Field) -> Int[np.ndarray, "T"]:
    """The tokens of a caption without words."""
    begins = getattr(field.facts.get("tokenizer"), "begins", ())
    ids = np.concatenate([begins, [field.facts["special"]["eos"]]]).astype(np.int32)
    return captions.padded(ids, field)


class Caption(NamedTuple):
    """The caption, replaced by an empty one in some training examples and if none is given.

    Attributes:
      field: the field of captions.
      dropout: share of training examples with an empty one.
      encoder: the stage that reads it; None: the network sees its tokens.
    """

    field: Field
    dropout: float
    encoder: Stage | None

    def make(self, params: dict, mutable: dict, batch: Batch, key: Array, train: bool) -> Made:
        """The captions of a batch."""
        text = batch["text"]
        if train and self.dropout:
            dropped = jax.random.bernoulli(key, self.dropout, (len(text), 1))
            text = jnp.where(dropped, empty(self.field), text)
        return self.read(params, mutable, text)

    def fill(self, params: dict, mutable: dict, condition: Condition, key: Array, num: int) -> Made:
        """The captions that a user gives.

        Raises:
          ConfigError: there is none, and the network was not trained with empty ones.
        """
        if "text" in condition or not self.dropout:
            return self.read(params, mutable, required(condition, "text"))
        return self.read(params, mutable, jnp.tile(empty(self.field), (num, 1)))

    def read(self, params: dict, mutable: dict, text: Int[Array, "B T"]) -> Made:
        """The condition of captions: the tokens, or the encoder's vectors, 0 after the text."""
        if self.encoder is None:
            return {"text": text}
        own = self.encoder.own(params), self.encoder.own(mutable)
        vectors, seen = self.encoder.method.text_encoder.encode(*own, text)
        return {TEXT_VECTORS: jnp.where(seen[..., None], vectors, 0.0)}

    def prompts(self, params: dict, mutable: dict, given: Prompts) -> Prompts:
        """The vectors of other prompts."""
        if given.negative is not None:
            negative = self.read(params, mutable, given.negative[None])[TEXT_VECTORS][0]
            given = given._replace(negative=negative)
        if given.more is not None:
            given = given._replace(more=self.read(params, mutable, given.more)[TEXT_VECTORS])
        return given


def _text(o: Section, spec: DataSpec, stages: Mapping[str, Stage]) -> Part:
    key, value = (
        ("text_dropout", o.text_dropout) if o.text_dropout else ("text_encoder", o.text_encoder)
    )
    expected = "none, or diffusion.conditions with 'text'"
    require("text" in o.conditions, f"diffusion.{key}", value, expected)
    field = spec.fields["text"]
    if not o.text_encoder:
        made = Caption(field, o.text_dropout, None)
        return Part({"text": field}, {}, made.make, made.fill)
    stage = stage_of("diffusion.text_encoder", o.text_encoder, stages)
    made = Caption(field, o.text_dropout, stage)
    vectors = Field("real", _vectors_shape(stage, field), np.dtype(np.float32), {"text": field})
    return Part({TEXT_VECTORS: vectors}, {"text": field}, made.make, made.fill, made.prompts)


def _vectors_shape(stage: Stage, field: Field) -> tuple[int, int]:
    """The shape of a stage's vectors for one caption.

    Raises:
      ConfigError: the stage reads no texts, texts of another tokenizer, or none of this length.
    """
    key, encoder = f"diffusion.text_encoder={stage.name!r}", stage.method.text_encoder
    if encoder is None:
        raise ConfigError(
            f"{key}: a run of method {stage.config.method!r}, which reads no captions. Give one of "
            "method 'clip', 'masked_lm' or 'seq2seq'."
        )
    if encoder.field.facts["tokenizer"] != field.facts["tokenizer"]:
        raise ConfigError(
            f"{key}: its tokenizer is not that of the captions, so the same tokens mean other text "
            "to it. Give its tokenizer.json as config.dataset.text.tokenizer, or a stage that was "
            "trained with the tokenizer of config.dataset."
        )
    batch = {name: jnp.zeros((1, *f.shape), f.dtype) for name, f in stage.spec.fields.items()}

    def vectors() -> Array:
        text = jnp.zeros((1, *field.shape), field.dtype)
        return encoder.encode(*stage.method.init(jax.random.key(0), batch), text)[0]

    try:
        return jax.eval_shape(vectors).shape[1:]
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


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


class LowResolution(NamedTuple):
    """The image at a lower resolution, with noise, and the level of that noise.

    Attributes:
      target: the name of the image's field.
      large: the shape of an image.
      small: the shape of the smaller one.
      base: the stage that draws it; None: it is always given.
      level: the default level of the noise.
    """

    target: str
    large: tuple[int, ...]
    small: tuple[int, ...]
    base: Stage | None
    level: float

    def make(self, params: dict, mutable: dict, batch: Batch, key: Array, train: bool) -> Made:
        """The smaller images of a batch: in training with any level of noise."""
        image = smaller(to_float(batch[self.target]), min(self.small[:2]))
        key_level, key_noise = jax.random.split(key)
        level = jnp.full((len(image),), self.level)
        level = jax.random.uniform(key_level, level.shape) if train else level
        return self._noisy(image, level, jax.random.normal(key_noise, image.shape))

    def fill(self, params: dict, mutable: dict, condition: Condition, key: Array, num: int) -> Made:
        """The smaller images that a user gives, or that the stage draws.

        Images of the large size are made smaller. The noise of one does not depend on the others.

        Raises:
          ConfigError: there are none, or they have another size.
        """
        if SMALL in condition or self.base is None:
            image = required(condition, SMALL)
        else:
            asked = _drawn_from_noise(self.base)
            own = {name: value for name, value in condition.items() if name in asked}
            image = drawn(self.base, params, mutable, jax.random.fold_in(key, 0), num, own)
        image = to_float(jnp.asarray(image))
        if image.shape == (num, *self.large):
            image = smaller(image, min(self.small[:2]))
        if image.shape != (num, *self.small):
            H, W, _ = self.large
            raise ConfigError(
                f"{SMALL}: expected images {(num, *self.small)}, which the model enlarges to {H} x "
                f"{W}, got {image.shape}. Another size needs a model of its own: diffusion.{SMALL} "
                "and dataset.image_size."
            )
        level = jnp.asarray(condition.get(NOISE, jnp.full((num,), self.level)), jnp.float32)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(1 + jnp.arange(num))
        noise = jax.vmap(lambda key: jax.random.normal(key, self.small))(keys)
        return self._noisy(image, jnp.clip(level, 0.0, 1.0), noise)

    def _noisy(self, image: Array, level: Array, noise: Array) -> Made:
        features = sinusoidal(1000.0 * level, LEVEL_FEATURES)
        return {SMALL: augmented(image, level, noise), LEVEL: features}


def _drawn_from_noise(base: Stage) -> dict[str, Field]:
    """The conditions of a stage, without those for samples that begin with a picture."""
    fields = base.method.conditions
    return {name: field for name, field in fields.items() if not field.facts.get("of_start")}


def _low_resolution(o: Section, spec: DataSpec, stages: Mapping[str, Stage]) -> Part:
    key, side, target = "diffusion.low_resolution", o.low_resolution, spec.generated
    is_image = target.kind == "image" and target.dtype == np.uint8
    require(is_image, key, side, "0: the data are not 8-bit images")
    H, W, C = target.shape
    k = min(H, W) // side
    fits = k > 1 and min(H, W) % side == H % max(k, 1) == W % max(k, 1) == 0
    require(fits, key, side, f"a smaller side that divides the images' {H} x {W}")
    shape, name = (H // k, W // k, C), o.low_resolution_stage
    base = stage_of("diffusion.low_resolution_stage", name, stages) if name else None
    if base is not None:
        field = base.method.output or base.spec.generated
        if field.kind != "image" or tuple(field.shape) != shape:
            raise ConfigError(
                f"{key}={side}: the small image is {shape}, but the stage {name!r} draws a field "
                f"of kind {field.kind!r} and shape {tuple(field.shape)}. Give a stage that draws "
                "such images, or another dataset.image_size."
            )
    facts = UNLISTED if base else {"field": spec.target}  # held-out images are made smaller
    given = _drawn_from_noise(base) if base else {}
    given[SMALL] = Field("image", shape, np.dtype(np.uint8), facts)
    given[NOISE] = Field("real", (), np.dtype(np.float32), SHARE)
    fields = {
        SMALL: Field("real", shape, np.dtype(np.float32), {}),
        LEVEL: Field("real", (LEVEL_FEATURES,), np.dtype(np.float32), {}),
    }
    made = LowResolution(spec.target, tuple(target.shape), shape, base, o.low_resolution_noise)
    return Part(fields, given, made.make, made.fill, shows=SMALL)
