"""Processors of the logits of the next token, applied before a token is chosen.

A processor is a pure function `(logits [B, V], history [B, S]) -> logits [B, V]`. The history is
the prompt, padded on the left, and the new tokens; padding and columns not yet filled are -1. All
rows have the same length: their newest tokens are in the last column that is not all -1. In beam
search a processor gets log-probabilities instead of logits.

Each function here but `chain` makes one processor; `chain` makes those of a set of options in the
order of transformers' GenerationMixin. It leaves out processors that are off. Processors with the
same options are equal, so that programs compiled with them are not compiled again.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from genjax.config import require
from genjax.nn.functional import Bound

MOST_NEW_TOKENS = 2**24
LEAST, MOST = 1e-6, 1e6  # limits of numbers that logits are multiplied with, or divided by

Processor = Callable[[Float[Array, "B V"], Int[Array, "B S"]], Float[Array, "B V"]]


class Options(NamedTuple):
    """The options of a chain; the defaults leave the logits unchanged.

    Attributes:
      temperature: divides the logits; 0 means the most probable token, and then top_k, top_p and
        min_p, which would not change it, are left out.
      top_k: keep this many of the most probable tokens; 0 keeps all.
      top_p: keep the most probable tokens that together have this probability; 1 keeps all.
      min_p: keep the tokens at least this share as probable as the most probable one.
      repetition_penalty: above 1, tokens of the history become less probable.
      no_repeat_ngram: no n-gram of this length occurs twice; 0 allows repeats.
      allowed: the only tokens to choose from; empty for all.
      banned: sequences of tokens that must not occur.
      min_new_tokens: the number of new tokens before a text may end.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    allowed: Sequence[int] = ()
    banned: Sequence[Sequence[int]] = ()
    min_new_tokens: int = 0


def chain(options: Options, *, eos: Sequence[int] = (), prompt: int = 0) -> tuple[Processor, ...]:
    """The processors that `options` ask for, in order.

    Args:
      options: see `Options`.
      eos: tokens that end a text, for `min_new_tokens`.
      prompt: columns of the prompt P, for `min_new_tokens`.

    Raises:
      ConfigError: an option is out of range.
    """
    o = options
    processors = []
    if o.repetition_penalty != 1:
        processors.append(repetition_penalty(o.repetition_penalty))
    if o.no_repeat_ngram != 0:
        processors.append(no_repeat_ngram(o.no_repeat_ngram))
    if o.banned:
        processors.append(banned(o.banned))
    if o.min_new_tokens != 0:
        later = minimum_new_tokens(o.min_new_tokens, eos, prompt)
        processors += [later] if eos else []
    if o.allowed:
        processors.append(allowed(o.allowed))
    warpers = []
    if o.temperature not in (0, 1):
        warpers.append(temperature(o.temperature))
    if o.top_k != 0:
        warpers.append(top_k(o.top_k))
    if o.top_p != 1:
        warpers.append(top_p(o.top_p))
    if o.min_p != 0:
        warpers.append(min_p(o.min_p))
    return tuple(processors if o.temperature == 0 else processors + warpers)


def guided(
    conditional: Float[Array, "*B V"],
    unconditional: Float[Array, "*B V"],
    scale: Float[Array, ""] | float,
) -> Float[Array, "*B V"]:
    """log p(x | nothing) + w (log p(x | condition) - log p(x | nothing)), up to its normalisation.

    Classifier-free guidance of a distribution over tokens (Ho & Salimans 2022, on logits as in Yu
    et al. 2022, section 2.3; Schiff et al. 2024, "D-CFG").

    Args:
      conditional: logits of the network that knows the condition.
      unconditional: of the one that does not.
      scale: w; with 1 the condition alone counts.
    """
    conditional, unconditional = jax.nn.log_softmax(conditional), jax.nn.log_softmax(unconditional)
    return unconditional + scale * (conditional - unconditional)


def temperature(value: float) -> Processor:
    """Divides by `value`: below 1 sharpens the distribution, above 1 flattens it.

    Raises:
      ConfigError: not a number from `LEAST` to `MOST`.
    """
    require_temperature("temperature", value)
    return Bound(_temperature, (float(value),))


def _temperature(value: float, logits: Array, history: Array) -> Array:
    return logits / value


def top_k(count: int) -> Processor:
    """Keeps the `count` most probable tokens, and ties with the last (Fan et al. 2018).

    Raises:
      ConfigError: not a whole number above 0.
    """
    require(whole_number(count) and count > 0, "top_k", count, "a whole number above 0")
    return Bound(_top_k, (int(count),))


def _top_k(count: int, logits: Array, history: Array) -> Array:
    least = jax.lax.top_k(logits, min(count, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def top_p(mass: float) -> Processor:
    """Keeps the fewest tokens whose probabilities sum to `mass` (Holtzman et al. 2020, eq. 2).

    Without sorting: the least probability to keep is found bit by bit, from the highest bit down,
    because the bits of positive floats have the same order as the floats.

    Raises:
      ConfigError: not a number from `LEAST` to 1.
    """
    _require_number("top_p", mass, LEAST, 1)
    return Bound(_top_p, (float(mass),))


def _top_p(mass: float, logits: Array, history: Array) -> Array:
    probability = jax.nn.softmax(logits.astype(jnp.float32))
    bits = jax.lax.bitcast_convert_type(probability, jnp.int32)

    def settle(i: Array, least: Int[Array, "B 1"]) -> Int[Array, "B 1"]:
        higher = least | (1 << (29 - i))  # 1.0 needs 30 bits
        kept_mass = jnp.where(bits >= higher, probability, 0).sum(-1, keepdims=True)
        return jnp.where(kept_mass >= mass, higher, least)

    least = jax.lax.fori_loop(0, 30, settle, jnp.zeros((len(logits), 1), jnp.int32))
    return jnp.where(bits < least, -jnp.inf, logits)


def min_p(share: float) -> Processor:
    """Keeps tokens with at least `share` of the highest probability (Nguyen et al. 2024).

    Raises:
      ConfigError: not a number from `LEAST` to 1.
    """
    _require_number("min_p", share, LEAST, 1)
    return Bound(_min_p, (float(share),))


def _min_p(share: float, logits: Array, history: Array) -> Array:
    least = logits.max(-1, keepdims=True) + math.log(share)
    return jnp.where(logits < least, -jnp.inf, logits)


def repetition_penalty(penalty: float) -> Processor:
    """Divides positive logits of tokens in the history by `penalty`, and multiplies negative ones.

    Keskar et al. 2019, section 4.1, extended to negative logits.

    Raises:
      ConfigError: not a number from `LEAST` to `MOST`.
    """
    _require_number("repetition_penalty", penalty, LEAST, MOST)
    return Bound(_repetition_penalty, (float(penalty),))


def _repetition_penalty(penalty: float, logits: Array, history: Array) -> Array:
    changed = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(_mark(history, logits), changed, logits)


def no_repeat_ngram(size: int) -> Processor:
    """Removes each token that would complete an n-gram of `size` that the history already has.

    Paulus et al. 2018, section 2.5.

    Raises:
      ConfigError: not a whole number above 0.
    """
    require(whole_number(size) and size > 0, "no_repeat_ngram", size, "a whole number above 0")
    return Bound(_no_repeat_ngram, (int(size),))


def _no_repeat_ngram(size: int, logits: Array, history: Array) -> Array:
    starts = history.shape[1] - size + 1
    if starts < 1:
        return logits
    prefix = newest(history, columns(history), size - 1)
    repeated = jnp.ones((len(history), starts), bool)
    for i in range(size - 1):
        repeated &= history[:, i : i + starts] == prefix[:, i : i + 1]
    completed = jnp.where(repeated, history[:, size - 1 :], -1)
    return jnp.where(_mark(completed, logits), -jnp.inf, logits)


def allowed(tokens: Sequence[int]) -> Processor:
    """Removes all tokens but these.

    Raises:
      ConfigError: no tokens, a token that is not a whole number, or, at the first call, one outside
        the vocabulary.
    """
    allowed_ids = ids("allowed", tokens)
    require(allowed_ids, "allowed", tokens, "at least one token")
    return Bound(_allowed, (allowed_ids,))


def _allowed(tokens: tuple[int, ...], logits: Array, history: Array) -> Array:
    return jnp.where(_vocabulary_mask("allowed", tokens, logits), logits, -jnp.inf)


def banned(sequences: Sequence[Sequence[int]]) -> Processor:
    """Removes each token that would complete one of these sequences.

    Raises:
      ConfigError: an empty sequence, a token that is not a whole number, or, at the first call, one
        outside the vocabulary.
    """
    require(isinstance(sequences, Iterable), "banned", sequences, "sequences of tokens")
    forms = tuple(ids("banned", sequence) for sequence in sequences)
    require(all(forms), "banned", sequences, "sequences of at least one token")
    return Bound(_banned, (forms,))


def _banned(sequences: tuple[tuple[int, ...], ...], logits: Array, history: Array) -> Array:
    for sequence in sequences:
        last = _vocabulary_mask("banned", sequence[-1:], logits)
        _vocabulary_mask("banned", sequence[:-1], logits)
        prefix_matches = newest(history, columns(history), len(sequence) - 1)
        prefix_matches = (prefix_matches == jnp.asarray(sequence[:-1], jnp.int32)).all(
            -1, keepdims=True
        )
        logits = jnp.where(prefix_matches & last, -jnp.inf, logits)
    return logits


def minimum_new_tokens(count: int, eos: Sequence[int], prompt: int) -> Processor:
    """Removes the tokens `eos` until `count` tokens follow a prompt of `prompt` columns.

    Raises:
      ConfigError: a count below 0 or above `MOST_NEW_TOKENS`, or, at the first call, a token
        outside the vocabulary.
    """
    in_range = whole_number(count) and 0 <= count <= MOST_NEW_TOKENS
    require(in_range, "min_new_tokens", count, f"a whole number from 0 to {MOST_NEW_TOKENS}")
    return Bound(_minimum_new_tokens, (int(count), ids("eos", eos), prompt))


def _minimum_new_tokens(
    count: int, eos: tuple[int, ...], prompt: int, logits: Array, history: Array
) -> Array:
    early = columns(history) - prompt < count
    return jnp.where(early & _vocabulary_mask("eos", eos, logits), -jnp.inf, logits)


def columns(history: Int[Array, "B S"]) -> Int[Array, ""]:
    """The number of filled columns: up to the last that is not -1 in every row."""
    filled = (history >= 0).any(0)
    return jnp.max(jnp.where(filled, jnp.arange(1, len(filled) + 1), 0))


def newest(
    history: Int[Array, "B S"], length: Int[Array, ""] | int, count: int
) -> Int[Array, "B N"]:
    """The last `count` of the first `length` columns of the history, -1 where there are fewer."""
    padded = jnp.pad(history, ((0, 0), (count, 0)), constant_values=-1)
    return jax.lax.dynamic_slice_in_dim(padded, length, count, 1)


def ids(name: str, tokens: Sequence[int]) -> tuple[int, ...]:
    """Tokens as Python's integers, which can be compared and hashed, from integers of any type.

    Raises:
      ConfigError: a token is not a whole number of 32 bits.
    """
    try:
        integers = tuple(map(operator.index, tokens))
    except TypeError:
        integers = (math.inf,)
    fit = all(abs(token) < 2**31 for token in integers)
    require(fit, name, tokens, "a sequence of tokens, each a whole number of 32 bits")
    return integers


def require_temperature(name: str, value: object) -> None:
    """Raises ConfigError unless logits can be divided by `value`."""
    _require_number(name, value, LEAST, MOST)


def _require_number(name: str, value: object, least: float, most: float) -> None:
    """Raises ConfigError unless `value` is a real number, of any type, in these limits."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    require(real and least <= value <= most, name, value, f"a number from {least:g} to {most:g}")


def whole_number(value: object) -> bool:
    """Whether `value` is an integer of any type, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _mark(tokens: Int[Array, "B N"], logits: Float[Array, "B V"]) -> Bool[Array, "B V"]:
    """Which tokens of the vocabulary occur in each row; -1 is not a token."""
    rows = jnp.arange(len(tokens))[:, None]
    column = jnp.where(tokens < 0, logits.shape[-1], tokens)
    return jnp.zeros(logits.shape, bool).at[rows, column].set(True, mode="drop")


def _vocabulary_mask(name: str, tokens: Sequence[int], logits: Array) -> Bool[np.ndarray, "V"]:
    """A mask over the vocabulary that is true for these tokens, the same for all rows."""
    values = logits.shape[-1]
    ids = np.asarray(tokens, np.int64)
    fit = bool(((ids >= 0) & (ids < values)).all())
    require(fit, name, tuple(ids.tolist()), f"tokens from 0 to {values - 1}")
    return np.isin(np.arange(values), ids)
