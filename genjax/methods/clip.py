"""Contrastive models of images and captions: CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023).

An image tower and a text tower give vectors of length 1. Those of an image and its own caption are
drawn together, and those of all other pairs of a batch apart. The loss is that of the whole batch,
also if it is spread over devices or accumulated: the gradients by all vectors are computed first,
then the towers' gradients part by part (GradCache, Gao et al. 2021).

The family generates nothing. Its vectors, from `embed`, serve other runs and judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Finite, Positive, Weight, Width, one_of, require
from genjax.config import construct, read_options
from genjax.interop import clip as imported
from genjax.interop import pretrained
from genjax.method import Aux, Batch, DataSpec, Field, Method, Phase, Rules, TextEncoder, Tree
from genjax.modalities.image import image_shape
from genjax.networks import cnn, text_tower, vit
from genjax.nn.functional import Functional, functional
from genjax.nn.layers import contract
from genjax.nn.pixels import to_float
from genjax.parallel.layout import EXAMPLES, laid
from genjax.sampling.conditions import Condition
from genjax.sampling.embeddings import unit

LOSSES = ("infonce", "siglip")
IMAGE_TOWERS = ("vit", "cnn")
NETWORKS = ("image", "text", "similarity")
RULES: Rules = vit.RULES  # also those of the text tower and of the CNN
CUTOFFS = (1, 5, 10)  # of the recalls


class Options(NamedTuple):
    """The `clip` section of a config, and its defaults.

    Attributes:
      loss: "infonce" or "siglip".
      features: size of the vectors, E.
      scale: the first value of the learned factor of the similarities, the inverse temperature;
        0: that of the loss's paper, 1 / 0.07 or 10.
      largest_scale: "infonce" keeps the factor at or below this (Radford et al. 2021, section 2.5).
      bias: the first value of the number that "siglip" adds to the similarities.
    """

    loss: str = "infonce"
    features: Width = 512
    scale: Weight = 0.0
    largest_scale: Positive = 100.0
    bias: Finite = -10.0


class Towers(NamedTuple):
    """The networks and the loss.

    Attributes:
      image: images in [-1, 1] -> vectors.
      text: tokens -> vectors.
      options: the `clip` section.
      microbatches: parts of a batch whose gradients are computed one after the other.
    """

    image: Functional
    text: Functional
    options: Options
    microbatches: int


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The family for images with captions.

    With `config.weights`, a folder of `interop.clip`, a new run starts from these weights.

    Raises:
      ConfigError: an unknown key or choice, a number out of range, data without 8-bit images or
        without captions, or data that the weights are not for.
    """
    o = read_options(config.clip, "clip", Options)
    one_of("clip.loss", o.loss, LOSSES)
    one_of("config.model.network", config.model.network, IMAGE_TOWERS)
    highest, first = o.largest_scale, first_scale(o)
    fits = o.loss != "infonce" or first <= highest
    require(fits, "config.clip.scale", first, f"at most clip.largest_scale={highest}")
    each = config.batch_size // config.accumulation
    require(each > 1, "batch_size / accumulation", each, "at least 2 pairs to compare")
    shape, caption = image_shape(spec, "clip"), captions(spec)
    made = {"features": o.features, "dtype": jnp.dtype(config.precision)}
    towers = Towers(
        functional(partial(_image_tower, config.model, shape, made)),
        functional(partial(_text_tower, config.model, caption, made)),
        o,
        config.accumulation,
    )
    return Method(
        pretrained=_pretrained(config, shape, caption) if config.get("weights") else None,
        init=partial(init, towers),
        phases=(Phase(NETWORKS, partial(loss, towers)),),
        evaluate=partial(evaluate, towers),
        sample=sample,
        rules=RULES,
        apply=partial(embed, towers),
        text_encoder=TextEncoder(caption, partial(encode_text, towers)),
        prepare=partial(cached, towers) if towers.microbatches > 1 else None,
        project={"similarity": partial(clipped, o)} if o.loss == "infonce" else {},
    )


def captions(spec: DataSpec) -> Field:
    """The field of the captions.

    Raises:
      ConfigError: the data have none.
    """
    field = spec.fields.get("text")
    if field is None or field.kind != "text" or "eos" not in field.facts.get("special", {}):
        raise ConfigError(
            f"method clip needs captions, a field 'text', and {spec.name} has the fields "
            f"{', '.join(spec.fields)}. Use 'emoji', 'stamps', 'avatars', or a folder in which "
            "every a.png has its caption in a.txt."
        )
    return field


def _image_tower(model: ConfigDict, shape: tuple, made: dict[str, Any], rngs: Any) -> Any:
    """The image tower that `model.network` names, with the options of the section of its name."""
    name = model.network
    if name == "vit":
        return construct(vit.Network, model.vit, "model.vit", shape=shape, rngs=rngs, **made)
    given = {"num_classes": made["features"], "dtype": made["dtype"]}
    return construct(cnn.Classifier, model.cnn, "model.cnn", shape=shape, rngs=rngs, **given)


def _text_tower(model: ConfigDict, caption: Field, made: dict[str, Any], rngs: Any) -> Any:
    special = caption.facts["special"]
    return construct(
        text_tower.Network,
        model.text,
        "model.text",
        vocabulary_size=caption.facts["vocabulary_size"],
        length=caption.shape[0],
        end=special["eos"],
        pad=special.get("pad", special["eos"]),
        rngs=rngs,
        **made,
    )


def _pretrained(
    config: ConfigDict, shape: tuple, caption: Field
) -> Callable[[], tuple[dict[str, Tree], dict[str, Tree]]]:
    """A function that reads the weights that the config names, once, before training.

    It raises a ConfigError if they are for other images or captions, or for another loss.
    """

    def read() -> tuple[dict[str, Tree], dict[str, Tree]]:
        folder, (length,) = pretrained.located(config.weights), caption.shape
        model, where = imported.describe(folder), f"as in config.weights={config.weights!r}"
        require(shape == (*model.size, 3), "images of shape", shape, f"{(*model.size, 3)}, {where}")
        known, found = model.vocabulary_size, caption.facts["vocabulary_size"]
        require(found == known, "vocabulary of the captions", found, f"{known} tokens, {where}")
        require(length <= model.length, "dataset.text.length", length, f"at most {model.length}")
        loss = config.clip.loss
        require(loss == model.loss, "clip.loss", loss, f"{model.loss}, {where}")
        return imported.read(folder, length), {}

    return read


def first_scale(o: Options) -> float:
    """The factor of the similarities before training."""
    return o.scale or {"infonce": 1 / 0.07, "siglip": 10.0}[o.loss]


def init(towers: Towers, key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """Draws the towers' parameters; the logarithm of the factor, and the bias, are numbers."""
    o = towers.options
    params = {
        "image": towers.image.init(jax.random.fold_in(key, 0))[0],
        "text": towers.text.init(jax.random.fold_in(key, 1))[0],
        "similarity": {"scale": jnp.float32(math.log(first_scale(o)))},
    }
    if o.loss == "siglip":
        params["similarity"]["bias"] = jnp.float32(o.bias)
    return params, {name: {} for name in NETWORKS}


def clipped(o: Options, similarity: Tree) -> Tree:
    """The parameters of the similarity with a factor of at most `largest_scale`."""
    return {"scale": jnp.minimum(similarity["scale"], math.log(o.largest_scale))}


def embed(
    towers: Towers,
    params: dict,
    mutable: dict,
    batch: Batch,
    key: Array | None = None,
    train: bool = False,
) -> dict[str, Float[Array, "B E"]]:
    """The vectors of length 1 of images, of texts, or of both, by the names of their fields.

    Args:
      towers: the networks.
      params: theirs, by network.
      mutable: empty, likewise.
      batch: `image`, uint8 [B, H, W, C], or `text`, tokens [B, T], or both; other fields have no
        effect.
      key: for dropout; needed in training if a rate is above 0.
      train: whether dropout is on.
    """
    found = {}
    for index, name in enumerate(("image", "text")):
        if name not in batch:
            continue
        given = to_float(batch[name]) if name == "image" else batch[name]
        draws = None if key is None else jax.random.fold_in(key, index)
        tower = getattr(towers, name)
        out, _ = tower.apply(params[name], mutable[name], given, key=draws, train=train)
        vectors = out[1] if isinstance(out, tuple) else out  # a classifier also gives features
        found[name] = laid(unit(vectors.astype(jnp.float32)), EXAMPLES, None)
    return found


def encode_text(
    towers: Towers, params: dict, mutable: dict, text: Int[Array, "B T"]
) -> tuple[Float[Array, "B T D"], Bool[Array, "B T"]]:
    """The text tower's vector of each token, and which tokens belong to the text."""
    return towers.text.apply(params["text"], mutable["text"], text, whole=False)[0]


def infonce(
    similarity: Float[Array, "B B"],
    scale: Float[Array, ""] | float,
    candidates: Bool[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """Cross-entropy of each image's own caption among all, and of each caption's image, in nats.

    The mean of both directions, as in the pseudocode of Radford et al. 2021 (figure 3).

    Args:
      similarity: cosines of image i and caption j.
      scale: their factor, the inverse temperature.
      candidates: the pairs with which the others are compared; None for all. A pair is always
        compared with itself.
    """
    logits = scale * similarity
    shown = (_among(x, candidates, -jnp.inf) for x in (logits, logits.T))
    return sum(jax.nn.logsumexp(x, 1) - jnp.diagonal(x) for x in shown) / 2


def siglip(
    similarity: Float[Array, "B B"],
    scale: Float[Array, ""] | float,
    bias: Float[Array, ""] | float,
    candidates: Bool[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """The sum over captions of -log sigmoid(z (scale s + bias)) for each image, in nats.

    z is 1 for the image's own caption and -1 for the others. Its mean over images is the loss of
    Zhai et al. 2023 (algorithm 1); the arguments are those of `infonce`.
    """
    z = 2 * jnp.eye(len(similarity)) - 1
    terms = -jax.nn.log_sigmoid(z * (scale * similarity + bias))
    return _among(terms, candidates, 0.0).sum(1)


def _among(
    x: Float[Array, "B B"], candidates: Bool[Array, "B"] | None, other: float
) -> Float[Array, "B B"]:
    """`x` on the diagonal and in the columns of candidates, and `other` elsewhere."""
    if candidates is None:
        return x
    return jnp.where(candidates[None, :] | jnp.eye(len(x), dtype=bool), x, other)


def pair_losses(
    o: Options,
    vectors: dict[str, Float[Array, "B E"]],
    similarity: Tree,
    candidates: Bool[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """The loss of each pair of a batch; `similarity` are the parameters of that network."""
    products, scale = cosines(vectors), jnp.exp(similarity["scale"])
    if o.loss == "infonce":
        return infonce(products, scale, candidates)
    return siglip(products, scale, similarity["bias"], candidates)


def cosines(vectors: dict[str, Float[Array, "B E"]]) -> Float[Array, "B B"]:
    """The products of image i and caption j, each device with the rows of its own images."""
    return laid(contract("ie,je->ij", vectors["image"], vectors["text"]), EXAMPLES, None)


def loss(
    towers: Towers, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """The mean of `pair_losses`; of a microbatch, what has its gradient by these pairs.

    The microbatch has fields from `cached`. The mean over microbatches is then the loss of the
    whole batch, and so is that of the gradients.
    """
    similarity, count = params["similarity"], float(len(batch["image"]))
    metrics = {"scale": jnp.exp(similarity["scale"])}
    metrics |= {"bias": similarity["bias"]} if "bias" in similarity else {}
    if "loss" not in batch:
        vectors = embed(towers, params, mutable, batch, key, True)
        value = pair_losses(towers.options, vectors, similarity).mean()
        return value, Aux(metrics, {}, count)
    key = jax.random.wrap_key_data(batch["draws"][0], impl=jax.random.key_impl(key))
    vectors = embed(towers, params, mutable, batch, key, True)
    linear = sum((batch[f"gradient/{name}"] * x).sum(-1).mean() for name, x in vectors.items())
    linear += sum(batch[f"gradient/{name}"].mean() * x for name, x in similarity.items())
    value = batch["loss"].mean() + linear - jax.lax.stop_gradient(linear)
    return value, Aux(metrics, {}, count)


def cached(
    towers: Towers, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> dict[str, Array]:
    """The batch, with each pair's loss among all, and the loss's gradients by vectors and numbers.

    One microbatch after the other is embedded (Gao et al. 2021, section 3.2, step 1), then the
    gradients by the vectors are computed (step 2). They are multiplied by the number of pairs,
    because microbatches are averaged. `draws` are the keys with which a microbatch is embedded
    again. Microbatch i has every n-th example from i, as in `genjax.training.accumulate`.
    """
    n, B = towers.microbatches, len(batch["image"])
    keys = jax.random.split(key, n)
    fields = {name: batch[name] for name in ("image", "text")}
    parts = {name: x.reshape(B // n, n, *x.shape[1:]).swapaxes(0, 1) for name, x in fields.items()}

    def one(part: tuple[dict[str, Array], Array]) -> dict[str, Array]:
        return embed(towers, params, mutable, part[0], part[1], True)

    vectors = {
        name: x.swapaxes(0, 1).reshape(B, -1) for name, x in jax.lax.map(one, (parts, keys)).items()
    }

    def mean(vectors: dict[str, Array], similarity: Tree) -> tuple[Array, Array]:
        losses = pair_losses(towers.options, vectors, similarity)
        return losses.mean(), losses

    gradients, losses = jax.grad(mean, (0, 1), has_aux=True)(vectors, params["similarity"])
    by_vector, by_number = gradients
    added = {f"gradient/{name}": B * g for name, g in by_vector.items()}
    added |= {f"gradient/{name}": jnp.full(B, g) for name, g in by_number.items()}
    draws = jnp.tile(jax.random.key_data(keys), (B // n, 1))
    return {**fields, **added, "draws": draws, "loss": losses}


def evaluate(
    towers: Towers, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Float[Array, "*B"]]:
    """Per pair of a batch: its loss, and whether it is found among the batch's pairs.

    `image_to_text_r5` is whether an image's own caption is among the 5 most similar of all
    `candidates`, the batch's captions; `text_to_image_r5` is the other direction. Rows that repeat
    the one before them, which fill up the last batch, are no candidates.
    """
    vectors = embed(towers, params, mutable, batch)
    candidates = distinct(batch["image"], batch["text"])
    found = {"loss": pair_losses(towers.options, vectors, params["similarity"], candidates)}
    products = cosines(vectors)
    for direction, x in (("image_to_text", products), ("text_to_image", products.T)):
        found |= {f"{direction}_r{k}": recall(x, candidates, k) for k in CUTOFFS}
    return found | {"candidates": candidates.sum().astype(jnp.float32)}


def distinct(*fields: Array) -> Bool[Array, "B"]:
    """Whether a row differs from the one before it in at least one field; the first row does."""
    changes = [(x[1:] != x[:-1]).reshape(len(x) - 1, -1).any(1) for x in map(jnp.asarray, fields)]
    return jnp.pad(sum(changes) > 0, (1, 0), constant_values=True)


def recall(
    similarity: Float[Array, "B B"], candidates: Bool[Array, "B"], k: int
) -> Float[Array, "B"]:
    """Whether the diagonal is among the k largest of its row, of candidates and itself.

    Equal ones are in random order: the result is the probability, between 0 and 1. So it is k
    divided by the number of candidates if all vectors are equal.
    """
    own = jnp.diagonal(similarity)[:, None]
    rows = _among(similarity, candidates, -jnp.inf)
    larger, equal = (rows > own).sum(1), (rows == own).sum(1)  # equal: itself included
    return jnp.clip((k - larger) / equal, 0.0, 1.0).astype(jnp.float32)


def zero_shot(vectors: Float[Array, "K M E"]) -> Float[Array, "K E"]:
    """The vectors of K classes, by those of M texts about each.

    Each is the mean of its texts' vectors, scaled to length 1 (Radford et al. 2021, section 3.1.4:
    an ensemble of prompts, in the space of the vectors).

    Args:
      vectors: of length 1, from `embed`, such as of "a photo of a dog." and "a drawing of a dog."
    """
    return unit(vectors.astype(jnp.float32).mean(1))


def classify(images: Float[Array, "B E"], classes: Float[Array, "K E"]) -> Int[Array, "B"]:
    """The class of each image: the one with the most similar vector.

    Args:
      images: vectors from `embed`.
      classes: vectors from `zero_shot`.
    """
    return contract("ie,ke->ik", images, classes).argmax(1)


def sample(params: dict, mutable: dict, key: Array, num: int, condition: Condition) -> NoReturn:
    """Raises an error: a contrastive model draws no samples.

    Raises:
      ConfigError: always.
    """
    raise ConfigError(
        "method clip does not sample: train it with evals.samples=0, or choose a generative method."
    )
