"""Which tokens of a text are hidden, word by word, and what stands in their places (BERT).

The inverse, filling masked tokens, is in `unmasking`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from genjax.method import Field
from genjax.networks.sequence import begins


class Vocabulary(NamedTuple):
    """What masking has to know about tokens; arrays have an entry for each token of the network.

    Attributes:
      values: number of tokens of the data.
      mask: the token that stands for a hidden one; it follows those of the data if they have none.
      is_text: whether a token is part of a text: neither a special token nor the mask.
      opens: whether a word begins with the token: it begins with a space or a mark, or is special.
      closes: whether a word begins after the token: it ends with a space or a mark, or is special.
    """

    values: int
    mask: int
    is_text: Bool[np.ndarray, "V"]
    opens: Bool[np.ndarray, "V"]
    closes: Bool[np.ndarray, "V"]


def vocabulary(field: Field, size: int = 0) -> Vocabulary:
    """The vocabulary of a text field, for a network of at least `size` tokens.

    Words are runs of letters and digits; characters beyond ASCII are letters.
    """
    values, tokenizer = field.facts["vocabulary_size"], field.facts["tokenizer"]
    mask = tokenizer.special.get("mask", values)
    pieces = list(tokenizer.spelling)[:values]
    pieces += [b""] * (max(size, values, mask + 1) - len(pieces))

    def outside(at: slice) -> np.ndarray:
        """Whether the byte there is not part of a word; true if there is none."""
        return np.array([not (p[at].isalnum() or p[at] >= b"\x80") for p in pieces])

    is_text = np.array([bool(piece) for piece in pieces])
    return Vocabulary(values, mask, is_text, outside(slice(0, 1)), outside(slice(-1, None)))


def words(
    known: Vocabulary, token: Int[Array, "B T"], segment: Int[Array, "B T"] | None
) -> Int[Array, "B T"]:
    """The number of the word that each token belongs to, from 0; no word is of two segments."""
    opens, closes = jnp.asarray(known.opens), jnp.asarray(known.closes)
    first = opens[token] | jnp.pad(closes[token[:, :-1]], ((0, 0), (1, 0)), constant_values=True)
    if segment is not None:
        first = first | begins(segment)
    return jnp.cumsum(first.at[:, 0].set(True), axis=1) - 1


def draws(
    known: Vocabulary,
    key: Array,
    token: Int[Array, "B T"],
    counts: Bool[Array, "B T"],
    segment: Int[Array, "B T"] | None,
    whole_words: bool,
) -> Float[Array, "B T"]:
    """A uniform number for each token, the same for all of a word if `whole_words`.

    The tokens below p are the chosen ones if each word is chosen with probability p. Tokens that do
    not count get 2.
    """
    draw = jax.random.uniform(key, token.shape)
    if whole_words:
        draw = jnp.take_along_axis(draw, words(known, token, segment), axis=1)
    return jnp.where(counts, draw, 2.0)


def corrupted(
    known: Vocabulary,
    key: Array,
    token: Int[Array, "B T"],
    chosen: Bool[Array, "B T"],
    mask_share: float,
    random_share: float,
) -> Int[Array, "B T"]:
    """Replaces chosen tokens by the mask or a random token, or leaves them (BERT, section 3.1)."""
    key_kind, key_other = jax.random.split(key)
    kind = jax.random.uniform(key_kind, token.shape)
    other = jax.random.randint(key_other, token.shape, 0, known.values)
    x = jnp.where(kind < mask_share + random_share, other, token)
    x = jnp.where(kind < mask_share, known.mask, x)
    return jnp.where(chosen, x, token)
