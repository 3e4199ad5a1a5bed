"""Recurrent layers are torch's, and their gradient is that of the plain scan."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from genjax.config import ConfigError, construct
from genjax.networks import recurrent
from genjax.nn.functional import functional

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "sequence_networks.npz")


@pytest.mark.parametrize("name", recurrent.KINDS)
def test_layers_are_torchs(name):
    kind, x = recurrent.KINDS[name], jnp.asarray(GOLDEN[f"{name}/x"]).swapaxes(0, 1)
    before, after = GOLDEN[f"{name}/before"], []
    for i in range(2):
        w = {
            key: GOLDEN[f"{name}/{key}_l{i}"].T
            for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        layer = recurrent.Layer(x.shape[-1], 4, kind, jnp.float32, nnx.Rngs(0))
        layer.input.kernel[...], layer.state.kernel[...] = w["weight_ih"], w["weight_hh"]
        if kind.state_bias:
            layer.input.bias[...], layer.state.bias[...] = w["bias_ih"], w["bias_hh"]
        else:
            layer.input.bias[...] = w["bias_ih"] + w["bias_hh"]
        x, state = layer(x, None, tuple(jnp.asarray(before[:, i])))
        after.append(state)
    np.testing.assert_allclose(x.swapaxes(0, 1), GOLDEN[f"{name}/y"], atol=1e-5)
    found = jnp.asarray(after).swapaxes(0, 1)
    np.testing.assert_allclose(found, GOLDEN[f"{name}/after"], atol=1e-5)


@pytest.mark.parametrize("name", recurrent.KINDS)
def test_the_derivatives_are_those_of_the_plain_scan(name):
    """Backward, forward, and forward over backward."""
    kind, (T, B, H) = recurrent.KINDS[name], (5, 2, 3)
    keys = iter(jax.random.split(jax.random.key(0), 6))
    draw = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: E731
    features = kind.gates * H
    bias = draw(features) if kind.state_bias else None
    state = tuple(draw(B, H) for _ in range(kind.states))
    given = (draw(T, B, features), draw(H, features), bias, state)
    new = jnp.zeros((T, B), bool).at[2, 0].set(True).at[0, 1].set(True)

    def plain(x, kernel, bias, state):
        outs = []
        for t in range(T):
            state = tuple(jnp.where(new[t][:, None], 0, s) for s in state)
            h = state[0] @ kernel
            state = kind.cell(x[t], h if bias is None else h + bias, state)
            outs.append(state[0])
        return jnp.stack(outs), state

    def fast(x, kernel, bias, state):
        return recurrent.unroll(kind.cell, x, kernel, bias, new, state)

    def slopes(run):
        def total(given):
            out, last = run(*given)
            weights = jnp.arange(out.size).reshape(out.shape) % 7 - 3.0
            return (out * weights).sum() + sum((s**2).sum() for s in last)

        along = jax.tree.map(jnp.cos, given)
        backward = jax.value_and_grad(total)
        forward = jax.jit(lambda given: jax.jvp(lambda given: run(*given), (given,), (along,)))
        both = jax.jit(lambda given: jax.jvp(backward, (given,), (along,)))(given)
        return both[0], (forward(given), both[1])

    (first, more), (plain_first, plain_more) = slopes(fast), slopes(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), first, plain_first)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), more, plain_more
    )


def test_the_tree_of_parameters_and_where_they_begin():
    net = functional(
        lambda rngs: recurrent.Network(11, 8, width=4, depth=2, cell="lstm", tied=True, rngs=rngs)
    )
    params, _ = net.init(jax.random.key(0))
    layer = {"input": {"kernel": (4, 16), "bias": (16,)}, "state": {"kernel": (4, 16)}}
    expected = {
        "embed": {"embedding": (11, 4)},
        "layers": {"0": layer, "1": layer},
        "head": {"bias": (11,)},
    }
    assert jax.tree.map(jnp.shape, params) == expected
    bias = np.asarray(params["layers"]["0"]["input"]["bias"]).reshape(4, 4)
    np.testing.assert_array_equal(bias, np.eye(4)[1][:, None] * np.ones(4))
    kernel = np.asarray(params["layers"]["0"]["state"]["kernel"])
    assert np.abs(kernel).max() < 0.5
    assert np.abs(kernel).max() > 0.4  # 1 / sqrt(4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cell": "ltsm"}, "Nearest: lstm"),
        ({"depth": 0}, "at least 1"),
        ({"width": -4}, "width=-4: expected at least 1"),
        ({"dropout": 1.0}, "dropout=1.0: expected at least 0 and below 1"),
        ({"tied": True, "frames": True}, "False with frames"),
    ],
)
def test_options_that_cannot_be(options, words):
    given = {"vocabulary_size": 4, "length": 4, "rngs": nnx.Rngs(0)}
    with pytest.raises(ConfigError, match=words):
        construct(recurrent.Network, ConfigDict(options), "model", **given)
