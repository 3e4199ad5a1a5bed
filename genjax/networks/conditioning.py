"""The conditions of a network: how each one enters, by its kind and shape.

label      classes, which the network embeds
channels   an image on the grid of the input, appended to its channels
vector     numbers, which a linear map adds to the embedding of time
context    a sequence of vectors, which cross-attention sees
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from genjax.config import ConfigError
from genjax.method import Field
from genjax.networks.text_tower import seen as own_tokens
from genjax.networks.transformer import Transformer
from genjax.nn.layers import Embed, Linear, space_to_depth
from genjax.nn.pixels import to_float
from genjax.nn.positions import sinusoidal
from genjax.parallel.rules import Rules, fsdp, replicate, tensor

RULES: Rules = (
    (r"conditions/.*blocks/up/kernel$", tensor(-1)),
    (r"conditions/.*blocks/(qkv|merge|down)/kernel$", tensor(-2)),
    (r"conditions/.*(kernel|embedding)$", fsdp),
    (r"conditions/", replicate),
)


class Way(NamedTuple):
    """One way for fields to enter, and the fields that it accepts.

    Attributes:
      name: "channels", "vector" or "context".
      kinds: accepted kinds of fields.
      real: whether the fields must be real numbers (True) or integers (False); None for any.
      axes: accepted numbers of axes.
      said: description of the accepted fields, for error messages.
    """

    name: str
    kinds: tuple[str, ...]
    real: bool | None
    axes: tuple[int, ...]
    said: str


WAYS = (
    Way("channels", ("image", "mask"), None, (3,), "images and masks [H, W, C]"),
    Way("channels", ("code", "real"), True, (3,), "latents and maps of real numbers [H, W, C]"),
    Way("vector", ("label",), False, (0,), "labels"),
    Way("vector", ("code", "real"), True, (0, 1), "real numbers and vectors [D]"),
    Way("context", ("code", "real"), True, (2,), "rows of real vectors [L, D]"),
    Way("context", ("text",), False, (1,), "texts [L]"),
    Way("context", ("code",), False, (1, 2), "tokens [L] or [H, W]"),
)


class Conditioning(NamedTuple):
    """The conditions of one batch; None for those that the network does not have.

    Attributes:
      label: classes; `num_classes` is the null class.
      channels: additional channels of the network's input.
      vector: numbers.
      context: sequences of vectors.
      context_mask: true for the vectors that are seen; at least one of each example.
    """

    label: Int[Array, "B"] | None = None
    channels: Float[Array, "B H W C"] | None = None
    vector: Float[Array, "B D"] | None = None
    context: Float[Array, "B S E"] | None = None
    context_mask: Bool[Array, "B S"] | None = None


class Sizes(NamedTuple):
    """The sizes of a network's conditions.

    Attributes:
      channels: number of additional channels of the input.
      vector_width: D, 0 for no vector.
      context_width: E, 0 for no context.
    """

    channels: int = 0
    vector_width: int = 0
    context_width: int = 0


class RowOptions(NamedTuple):
    """The options of texts and rows.

    Attributes:
      width: width of the vectors, E.
      depth: number of blocks of the transformer over a text's vectors; 0 for none.
      heads: its attention heads.
      dtype: its compute type.
    """

    width: int
    depth: int = 0
    heads: int = 4
    dtype: Any = jnp.float32


def text_of(field: Field) -> Field | None:
    """The field of the text that a field holds: itself, or the fact `text` of its vectors."""
    return field if field.kind == "text" else field.facts.get("text")


def is_real(field: Field) -> bool:
    """Whether the field's values are real numbers."""
    return np.issubdtype(np.dtype(field.dtype), np.floating)


def way_of(name: str, field: Field) -> str:
    """Returns how a condition enters: "channels", "vector" or "context".

    Raises:
      ConfigError: no network takes such a field.
    """
    for way in WAYS:
        kind_fits = field.kind in way.kinds and way.real in (None, is_real(field))
        if kind_fits and len(field.shape) in way.axes and None not in field.shape:
            return way.name
    raise ConfigError(
        f"the condition {name!r} is of kind {field.kind!r}, shape {tuple(field.shape)} and dtype "
        f"{np.dtype(field.dtype)}: no network takes it. Expected {', '.join(w.said for w in WAYS)}."
    )


def factor_of(name: str, field: Field, grid: tuple[int, int]) -> tuple[int, int]:
    """Returns (field size / grid size, 1), or (1, grid size / field size).

    Raises:
      ConfigError: the factor is not the same whole number along both axes.
    """
    (h, w), (H, W) = field.shape[:2], grid
    if h % H == w % W == 0 and h // H == w // W:
        return h // H, 1
    if H % h == W % w == 0 and H // h == W // w:
        return 1, H // h
    raise ConfigError(
        f"the condition {name!r} is {h} x {w}, but the network generates {H} x {W}: expected "
        "the same size, or one that is larger or smaller by the same whole factor along both "
        "sides. Resize it."
    )


def sizes(fields: Mapping[str, Field], grid: tuple[int, int], context_width: int) -> Sizes:
    """Returns the sizes of a network's inputs for these conditions.

    Args:
      fields: the conditions by name, without the label that the network embeds itself.
      grid: height and width of the generated image or latent.
      context_width: width of the vectors of a context, if there is one.

    Raises:
      ConfigError: no network takes one of the conditions.
    """
    channels = vector = 0
    context = False
    for name, field in fields.items():
        way = way_of(name, field)
        if way == "channels":
            channels += field.shape[2] * factor_of(name, field, grid)[0] ** 2
        elif way == "vector":
            vector += _vector_size(field)
        else:
            context = True
    return Sizes(channels, vector, context_width if context else 0)


def _vector_size(field: Field) -> int:
    """The number of elements that the field adds to the vector."""
    return field.facts["num_classes"] if field.kind == "label" else int(np.prod(field.shape))


def scaled(field: Field, x: Array) -> Float[Array, "B ..."]:
    """Scales values for a network, float32.

    Images and masks to [-1, 1]; labels to one-hot vectors; other numbers to zero mean and unit
    variance, if their field has the facts `mean` and `std`.
    """
    if field.kind == "image":
        return to_float(x) if x.dtype == jnp.uint8 else 2.0 * x - 1.0
    if field.kind == "mask":
        return 2.0 * x.astype(jnp.float32) - 1.0
    if field.kind == "label":
        return jax.nn.one_hot(x, field.facts["num_classes"])
    mean, std = moments(field)
    return (x - mean) / std


def moments(field: Field) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Mean and standard deviation of a field, from its facts; 0 and 1 if it has none."""
    facts = field.facts
    return tuple(jnp.asarray(facts.get(k, d), jnp.float32) for k, d in (("mean", 0), ("std", 1)))


def on_grid(
    name: str, field: Field, x: Float[Array, "B h w C"], grid: tuple[int, int]
) -> Float[Array, "B H W D"]:
    """Brings an image to the grid: enlarges a small one, folds pixels of a large one into channels.

    Masks are enlarged by repetition, other images by bicubic interpolation, as in SR3 (Saharia et
    al. 2021).
    """
    larger, smaller = factor_of(name, field, grid)
    if smaller == 1:
        return space_to_depth(x, larger) if larger > 1 else x
    kind = "nearest" if field.kind == "mask" else "cubic"
    return jax.image.resize(x, (len(x), *grid, x.shape[-1]), kind)


class Row(nnx.Module):
    """Maps a condition's tokens or vectors to vectors for cross-attention; has a null vector.

    A transformer over a text's vectors tells which words belong together: without it, a red hat
    with a blue shirt is hardly another text than a blue hat with a red shirt.
    """

    def __init__(self, field: Field, o: RowOptions, *, rngs: nnx.Rngs):
        """Makes an embedding of tokens, or a linear map of vectors, and the text's transformer."""
        real, width = is_real(field), o.width
        self.map = Linear(field.shape[-1], width, rngs=rngs) if real else None
        self.token = None if real else Embed(field.facts["vocabulary_size"], width, rngs=rngs)
        self.null = nnx.Param(jax.random.normal(rngs.params(), (width,)))
        special = field.facts.get("special", {})
        self.end, self.pad = special.get("eos", -1), special.get("pad", -1)
        self.padded = real and text_of(field) is not None
        sizes = {"width": width, "depth": o.depth, "heads": o.heads, "causal": False}
        encoded = o.depth > 0 and text_of(field) is not None
        self.body = Transformer(**sizes, dtype=o.dtype, rngs=rngs) if encoded else None

    def __call__(
        self, x: Array, hidden: Bool[Array, "B"] | None
    ) -> tuple[Float[Array, "B S E"], Bool[Array, "B S"]]:
        """Returns the vectors, and which of them are seen: those of a text up to its end.

        Of the vectors of a text, zeros are not seen.
        In a hidden example only the null vector is seen.
        """
        if self.map is not None:
            seen = (x != 0).any(-1) if self.padded else jnp.ones(x.shape[:2], bool)
            y = self.map(x.astype(jnp.float32))
        else:
            x = x.reshape(len(x), -1)
            y = self.token(x)
            y = y + sinusoidal(jnp.arange(x.shape[1]), y.shape[-1])
            seen = own_tokens(x, self.end, self.pad)
        if self.body is not None:
            y, _ = self.body(y, segment=seen.astype(jnp.int32))
        if hidden is not None:
            y = jnp.where(hidden[:, None, None], self.null[...].astype(y.dtype), y)
            seen = jnp.where(hidden[:, None], jnp.arange(y.shape[1]) == 0, seen)
        return y, seen


class Rows(nnx.Module):
    """The context: the vectors of all its conditions, concatenated."""

    def __init__(self, fields: Mapping[str, Field], o: RowOptions, *, rngs: nnx.Rngs):
        """Makes a `Row` for each field, under its name."""
        self.names = tuple(fields)
        self.rows = nnx.Dict({name: Row(field, o, rngs=rngs) for name, field in fields.items()})

    def __call__(
        self,
        values: Mapping[str, Array],
        hidden: Bool[Array, "B"] | None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B S E"], Bool[Array, "B S"]]:
        """Returns the context and its mask; `key` and `train` have no effect."""
        del key, train
        rows = [self.rows[name](values[name], hidden) for name in self.names]
        return tuple(jnp.concatenate(parts, axis=1) for parts in zip(*rows, strict=True))
