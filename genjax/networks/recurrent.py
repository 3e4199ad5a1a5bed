"""Recurrent networks over tokens or frames: stacked Elman, LSTM or GRU layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from genjax.checks import Blocks, Rate, Width, one_of, require
from genjax.networks.sequence import Head, begins, embedding, one_segment
from genjax.nn.layers import Linear, contract, dropout
from genjax.nn.updated import summed
from genjax.parallel.rules import Rules, fsdp, replicate

RULES: Rules = ((r"(kernel|embedding)$", fsdp), (r"bias$", replicate))
ENDLESS = True  # nothing limits the number of positions

State = tuple[Float[Array, "B H"], ...]  # the first array is the layer's output

sigmoid = jax.nn.sigmoid


def rnn(x: Float[Array, "B H"], h: Float[Array, "B H"], state: State) -> State:
    """Elman 1990: tanh of the sum of the input's product `x` and the state's product `h`."""
    return (jnp.tanh(x + h),)


def lstm(x: Float[Array, "B 4*H"], h: Float[Array, "B 4*H"], state: State) -> State:
    """Gers et al. 2000, in PyTorch's order: input gate, forget gate, cell, output gate."""
    i, f, g, o = jnp.split(x + h, 4, axis=-1)
    cell = sigmoid(f) * state[1] + sigmoid(i) * jnp.tanh(g)
    return sigmoid(o) * jnp.tanh(cell), cell


def gru(x: Float[Array, "B 3*H"], h: Float[Array, "B 3*H"], state: State) -> State:
    """Cho et al. 2014 as in PyTorch: reset, update, new; reset applies after the product."""
    (xr, xz, xn), (hr, hz, hn) = (jnp.split(a, 3, axis=-1) for a in (x, h))
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    return ((1 - z) * jnp.tanh(xn + r * hn) + z * state[0],)


class Kind(NamedTuple):
    """A cell: its function, its numbers of gates and state arrays, whether the state has a bias."""

    cell: Callable[[Array, Array, State], State]
    gates: int
    states: int
    state_bias: bool


KINDS = {
    "rnn": Kind(rnn, 1, 1, False),
    "lstm": Kind(lstm, 4, 2, False),
    "gru": Kind(gru, 3, 1, True),
}


def _scan(cell, x, taps, kernel, new, state) -> tuple[Float[Array, "T B H"], State]:
    """Scans a layer over time; `taps` is added to the product of the state."""

    def step(state: State, inputs: tuple) -> tuple[State, Array]:
        x, tap, new = inputs
        if new is not None:
            state = tuple(jnp.where(new[:, None], 0, s) for s in state)
        h = contract("bh,hf->bf", state[0].astype(kernel.dtype), kernel)
        state = cell(x, h if tap is None else h + tap, state)
        return state, state[0]

    state, out = lax.scan(step, state, (x, taps, new))
    return out, state


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def unroll(
    cell: Callable,
    x: Float[Array, "T B F"],
    kernel: Float[Array, "H F"],
    bias: Float[Array, "F"] | None,
    new: Bool[Array, "T B"] | None,
    state: State,
) -> tuple[Float[Array, "T B H"], State]:
    """Runs a layer over time, in float32; only products with `kernel` are in the kernel's dtype.

    The gradient of `kernel` is one product over all steps at the end, not a sum over steps.

    Args:
      cell: (product of the input, product of the state, state) -> state.
      x: products of the input.
      kernel: multiplies the state.
      bias: added to the product of the state; None for none.
      new: where the state is reset to zero before the step; None for nowhere.
      state: before the first step.

    Returns:
      The first array of the state after each step, and the state after the last.
    """
    return _scan(cell, x, _broadcast_bias(bias, x), kernel, new, state)


@unroll.defjvp
def _unroll_jvp(cell: Callable, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    x, kernel, bias, new, state = primals
    dx, dkernel, dbias, _, dstate = tangents
    (out, last), jvp = jax.linearize(
        lambda x, taps, state: _scan(cell, x, taps, kernel, new, state),
        x,
        _broadcast_bias(bias, x),
        state,
    )
    before = jnp.concatenate([state[0][None], out[:-1]])
    if new is not None:
        before = jnp.where(new[..., None], 0, before)
    slope = contract("tbh,hf->tbf", before.astype(kernel.dtype), dkernel)
    if bias is None:  # then the cell adds the state's product to the input's
        return (out, last), jvp(dx + slope, None, dstate)
    return (out, last), jvp(dx, _broadcast_bias(dbias, x) + slope, dstate)


def _broadcast_bias(bias: Float[Array, "F"] | None, x: Array) -> Array | None:
    return None if bias is None else jnp.broadcast_to(bias, x.shape)


class Layer(nnx.Module):
    """One layer: one product for the inputs of all steps, then a scan over time."""

    def __init__(self, features: int, width: int, kind: Kind, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Kernels start as U(-1 / sqrt(H), 1 / sqrt(H)), biases as 0, but 1 for forget gates.

        The latter follows Jozefowicz et al. 2015.
        """
        bound = 1 / math.sqrt(width)

        def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        linear_options = {"init": init, "dtype": dtype, "rngs": rngs}
        self.input = Linear(features, kind.gates * width, **linear_options)
        self.state = Linear(width, kind.gates * width, use_bias=kind.state_bias, **linear_options)
        if kind.cell is lstm:
            self.input.bias[...] = self.input.bias[...].at[width : 2 * width].set(1.0)
        self.cell, self.dtype = kind.cell, dtype

    def __call__(
        self, x: Float[Array, "T B D"], new: Bool[Array, "T B"] | None, state: State
    ) -> tuple[Float[Array, "T B H"], State]:
        """Returns the outputs, in the compute type, and the last state, float32."""
        bias = None if self.state.bias is None else self.state.bias[...]
        kernel = summed(self.state.kernel[...]).astype(self.dtype)  # `unroll` differentiates it
        products = self.input(x).astype(jnp.float32)
        out, state = unroll(self.cell, products, kernel, bias, new, state)
        return out.astype(self.dtype), state


class Network(nnx.Module):
    """Predicts the logits of the next token or frame; `sequence` describes how to call it.

    The cache is the state of all layers: one array [L, B, H], or two for an LSTM. It does not grow
    with the number of positions, which is unlimited.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        *,
        frames: bool = False,
        cell: str = "lstm",
        width: Width = 256,
        depth: Blocks = 1,
        tied: bool = False,
        dropout: Rate = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          vocabulary_size: number of values of a token, or of keys of a frame, V.
          length: not used.
          frames: whether the input is frames [B, T, V] of zeros and ones, used without embedding.
          cell: "rnn", "lstm" or "gru".
          width: of the state and of the token embeddings, H.
          depth: number of layers, L.
          tied: whether the head shares the weights of the token embeddings.
          dropout: rate on token embeddings and on the layers' outputs (Zaremba et al. 2014).
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an unknown cell, no layers, or a tied head with frames.
        """
        del length
        one_of("cell", cell, tuple(KINDS))
        require(not (tied and frames), "tied", tied, "False with frames, which have no embedding")
        layer_options = {"dtype": dtype, "rngs": rngs}
        self.embed = None if frames else embedding(vocabulary_size, width, False, **layer_options)
        self.layers = nnx.Dict(
            {
                str(i): Layer(
                    vocabulary_size if frames and i == 0 else width,
                    width,
                    KINDS[cell],
                    **layer_options,
                )
                for i in range(depth)
            }
        )
        self.head = Head(width, vocabulary_size, tied=tied, use_bias=True, rngs=rngs)
        self.shape, self.states = (depth, width), KINDS[cell].states
        self.dropout, self.dtype = dropout, dtype

    def __call__(
        self,
        x: Int[Array, "B T"] | Float[Array, "B T V"],
        *,
        segment: Int[Array, "B T"] | None = None,
        cache: tuple[Float[Array, "L B H"], ...] | None = None,
        capacity: int = 0,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T V"], tuple[Float[Array, "L B H"], ...] | None]:
        """Returns the logits in float32, and the cache.

        Raises:
          ValueError: both a segment and a cache are given.
        """
        one_segment(segment, cache)
        (depth, width), B = self.shape, len(x)
        keys = [None] * (depth + 1) if key is None else jax.random.split(key, depth + 1)
        h = x.astype(self.dtype)
        if self.embed is not None:
            h = dropout(self.embed(x), self.dropout, keys[-1], train)
        h = h.swapaxes(0, 1)
        new = None if segment is None else begins(segment).T
        old_states = cache or (jnp.zeros((depth, B, width), jnp.float32),) * self.states
        new_states = []
        for i in range(depth):
            h, state = self.layers[str(i)](h, new, tuple(array[i] for array in old_states))
            h = dropout(h, self.dropout, keys[i], train)
            new_states.append(state)
        logits = self.head((h[-1:] if capacity else h).swapaxes(0, 1), self.embed)
        if cache is None and not capacity:
            return logits, None
        return logits, tuple(jnp.stack(arrays) for arrays in zip(*new_states, strict=True))
