"""Pairs of a source and a target out of plain text: span corruption and text infilling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from genjax.checks import require


def spans(length: int, density: float, mean: float) -> tuple[int, int]:
    """(tokens, spans) that `corrupt_spans` takes out of a row of `length` tokens.

    Raises:
      ConfigError: there would be none, or no token between two of them.
    """
    noise = round(length * density)
    count = max(round(noise / mean), 1)
    fits = count <= noise and count <= length - noise
    require(
        fits, "seq2seq.density, mean_span", (density, mean), f"spans that fit into {length} tokens"
    )
    return noise, count


def corrupt_spans(
    key: Array, token: Int[Array, "L"], noise: int, count: int, first: int, end: int
) -> tuple[Int[Array, "S"], Int[Array, "T"]]:
    """Takes `count` spans of `noise` tokens in all out of a row (Raffel et al. 2020, figure 2).

    The number of tokens of each span, and between two spans, is at least 1, and otherwise all
    divisions are equally probable; the row begins with a token that is kept.

    Args:
      key: draws the spans.
      token: the row.
      noise: number of tokens to take out.
      count: number of spans, n.
      first: the token that stands for the first span; those of the others follow it.
      end: the token that ends source and target.

    Returns:
      The source: the row with a token in place of each span; S = L - noise + n + 1. The target: of
      each span its token and what it was; T = noise + n + 1.
    """
    L = len(token)
    keys = jax.random.split(key)
    lengths = [_parts(keys[0], L - noise, count), _parts(keys[1], noise, count)]
    lengths = jnp.stack(lengths, axis=1).reshape(-1)
    part = jnp.repeat(jnp.arange(2 * count), lengths, total_repeat_length=L)
    taken, name = part % 2 == 1, first + part // 2
    begins = jnp.concatenate([jnp.ones(1, bool), part[1:] != part[:-1]])
    source = _kept(jnp.where(taken, name, token), ~taken | begins, L - noise + count)
    target = _kept(jnp.where(taken, token, name), taken | begins, noise + count)
    return tuple(jnp.append(x, jnp.int32(end)) for x in (source, target))


def _parts(key: Array, total: int, count: int) -> Int[Array, "n"]:
    """Divides `total` into `count` numbers from 1; all ways are equally probable."""
    borders = jax.random.permutation(key, jnp.arange(total - 1) < count - 1)
    return jnp.bincount(jnp.cumsum(jnp.append(False, borders)), length=count)


def _kept(values: Int[Array, "L"], keep: Bool[Array, "L"], number: int) -> Int[Array, "N"]:
    """The values to keep, in order; their number must be right."""
    return values[jnp.argsort(~keep, stable=True)[:number]]


def infill(
    key: Array, token: Int[Array, "L"], noise: int, mean: float, mask: int, end: int
) -> tuple[Int[Array, "S"], Int[Array, "S"]]:
    """Replaces spans of a row by one mask each (Lewis et al. 2020, section 2.2, text infilling).

    The lengths are drawn from a Poisson distribution; a span of length 0 adds a mask. No two masks
    are neighbours, and the last span is cut so that no more than `noise` tokens are taken out. The
    paper also permutes sentences.

    Args:
      key: draws the spans.
      token: the row.
      noise: number of tokens to take out, at most L / 2.
      mean: of the Poisson distribution.
      mask: the token of a mask.
      end: the token that ends source and target, and pads the source.

    Returns:
      Source and target; S = L + 1.
    """
    L = len(token)
    keys = jax.random.split(key)
    length = jax.random.poisson(keys[0], mean, (noise,), jnp.int32)
    before = jnp.cumsum(length) - length
    used = before < noise
    length = jnp.where(used, jnp.minimum(length, noise - before), 0)
    # A gap is the number of kept tokens before a span.
    score: Float[Array, "S"] = jax.random.uniform(keys[1], (L + 1,))
    score = jnp.where(jnp.arange(L + 1) <= L - length.sum(), score, jnp.inf)
    gap = jnp.sort(jnp.where(used, jnp.argsort(score)[:noise], 2 * L))
    start = (gap + before)[:, None]
    index = jnp.arange(L)
    taken = ((start <= index) & (index < start + length[:, None])).any(0)
    kept = jnp.cumsum(~taken) - 1
    place = kept + (gap[:, None] <= kept).sum(0)
    source = jnp.full(L + 1, end, jnp.int32)
    source = source.at[jnp.where(taken, L + 1, place)].set(token, mode="drop")
    masks = jnp.where(used, gap + jnp.arange(noise), L + 1)
    source = source.at[masks].set(mask, mode="drop").at[L].set(end)
    return source, jnp.append(token, jnp.int32(end))
