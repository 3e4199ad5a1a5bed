"""Networks of a few lines with the interface that decoding asks for."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial


def markov(table, x, *, segment=None, cache=None, capacity=0):
    """The logits of a token, `table` [V, V], know the token before it alone; nothing to remember.

    The cache has the shape of one, for beams to sort.
    """
    return table[x], x[None, :, -1]


def recurrent(weights, x, *, segment=None, cache=None, capacity=0):
    """A recurrent network: what it remembers begins anew with a segment."""
    embed, turn, read = weights
    segment = jnp.zeros_like(x) if segment is None else segment

    def step(carry, given):
        h, old = carry
        token, new = given
        h = jnp.where((new == old)[:, None], h, 0)
        h = jnp.tanh(h @ turn + embed[token])
        return (h, new), h @ read

    start = jnp.zeros((len(x), len(turn))) if cache is None else cache["h"][0]
    (h, _), logits = jax.lax.scan(step, (start, segment[:, 0]), (x.T, segment.T))
    filled = x.shape[1] if cache is None else cache["filled"] + x.shape[1]
    return logits.swapaxes(0, 1), {"h": h[None], "filled": filled}


def table(values, seed=0):
    """A Markov model of so many tokens."""
    return Partial(markov, 2 * jax.random.normal(jax.random.key(seed), (values, values)))


def memory(values=11, width=16, seed=0):
    """A recurrent network whose choices depend on all that it has read."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((values, width), (width, width), (width, values))
    scales = (1.0, 1.5 / width**0.5, 1.5)
    weights = [s * jax.random.normal(k, n) for s, k, n in zip(scales, keys, shapes, strict=True)]
    return Partial(recurrent, weights)
