"""Attention: by one kernel where the accelerators have one, else by its formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from genjax.nn import fused_attention as fused
from genjax.nn.plain_attention import plain_attention
from genjax.parallel.layout import EXAMPLES, LENGTH, UNITS, laid, ways


def attention(
    query: Float[Array, "B T N D"],
    key: Float[Array, "B S K D"],
    value: Float[Array, "B S K D"],
    mask: Bool[Array, "..."] | None = None,
    *,
    bias: Float[Array, "b N T S"] | None = None,
    causal: bool = False,
    window: int = 0,
    segment: Int[Array, "B T"] | None = None,
    implied: bool = False,
    rate: float = 0.0,
    draws: jax.Array | None = None,
    train: bool = False,
) -> Float[Array, "B T N D"]:
    """`softmax(q k^T / sqrt(D)) v` per head (Vaswani et al. 2017, eq. 1), float32 softmax.

    K must divide N; each key head serves N / K consecutive query heads (Ainslie et al. 2023). On
    accelerators, one kernel computes it if it can (`fused_attention`): without dropout, without a
    bias, and with no mask but an implied one.

    Args:
      query: q.
      key: k.
      value: v.
      mask: true where a query sees a key, [T, S] or [B or 1, N or 1, T, S]; each query must see at
        least one.
      bias: is added to the products before the softmax, b is B or 1.
      causal: promises that the mask hides all later keys, and that T = S.
      window: if above 0, promises that the mask hides all keys but the newest so many.
      segment: promises that the mask hides all other segments, and that T = S.
      implied: promises that the mask hides nothing else.
      rate: dropout rate of the weights.
      draws: random key of the dropout.
      train: whether to apply dropout.
    """
    query, key, value = _over_heads(query, key, value)
    plain = bias is not None or (rate > 0.0 and train)
    fits = fused.fits(query, key, segment is not None, window)
    if not plain and (implied or mask is None) and fits:
        promised = {"causal": causal, "window": window, "segment": segment}
        out = fused.fused_attention(query, key, value, **promised)
    else:
        options = {"bias": bias, "causal": causal, "rate": rate, "draws": draws, "train": train}
        out = plain_attention(query, key, value, mask, **options)
    return laid(out, EXAMPLES, LENGTH, UNITS, None)


def _over_heads(
    query: Float[Array, "B T N D"], key: Float[Array, "B S K D"], value: Float[Array, "B S K D"]
) -> tuple[Float[Array, "B T N D"], Float[Array, "B S k D"], Float[Array, "B S k D"]]:
    """The three with all positions of a head on one device.

    Where the length is split over `sequence`, the heads are split over it instead, and back after
    attention: two all-to-alls (Jacobs et al. 2023, "DeepSpeed Ulysses"). Heads of keys that are too
    few for that are repeated.
    """
    heads, parts, length = key.shape[2], ways(UNITS, LENGTH), ways(LENGTH)
    if length > 1 and heads % parts:
        times = next((n for n in _divisors(query.shape[2] // heads) if heads * n % parts == 0), 1)
        key, value = (laid(x, EXAMPLES, None, UNITS, None) for x in (key, value))  # all positions
        key, value = (jnp.repeat(x, times, axis=2) for x in (key, value))
    return tuple(laid(x, EXAMPLES, None, (UNITS, LENGTH), None) for x in (query, key, value))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def across(
    query: Float[Array, "B T N D"],
    key: Float[Array, "B S K D"],
    value: Float[Array, "B S K D"],
    mask: Bool[Array, "B S"] | None,
) -> Float[Array, "B T N D"]:
    """Attention to a context; the mask is true for the visible keys, None means all.

    The result is zero for examples without visible keys.
    """
    if mask is None:
        return attention(query, key, value)
    any_visible = mask.any(-1)[:, None, None, None]
    shape = (len(mask), 1, query.shape[1], mask.shape[1])
    visible = jnp.broadcast_to(mask[:, None, None] | ~any_visible, shape)
    return jnp.where(any_visible, attention(query, key, value, visible), 0)
