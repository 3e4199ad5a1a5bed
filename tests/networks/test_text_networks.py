"""Networks of texts: convolutions against JAX's own, sizes against the papers', plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from genjax.networks import text_cnn, text_residual
from genjax.nn.functional import functional
from genjax.nn.layers import Conv1D

RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("padded", [True, False])
def test_a_convolution_is_that_of_jax(size, padded):
    layer = Conv1D(3, 6, size, padded=padded, rngs=nnx.Rngs(0))
    layer.bias[...] = draw(6)
    x = draw(2, 7, 3)
    pads = [((size - 1) // 2, size // 2)] if padded else "VALID"
    plain = lax.conv_general_dilated(
        x, layer.kernel[...], (1,), pads, dimension_numbers=("NWC", "WIO", "NWC")
    )
    assert plain.shape[1] == (7 if padded else 8 - size)
    np.testing.assert_allclose(layer(x), plain + layer.bias[...], rtol=1e-4, atol=1e-5)


def test_the_discriminator_is_its_formula_and_takes_tokens_or_one_hot():
    """Yu et al. 2017, eq. 10 to 13, position by position in NumPy."""
    net = functional(
        lambda rngs: text_cnn.Discriminator(5, 6, width=3, sizes=(1, 4), features=(2, 3), rngs=rngs)
    )
    params, _ = net.init(jax.random.key(0))
    token = jnp.asarray(RNG.integers(0, 5, (3, 6)), jnp.int32)
    (logits, classes), _ = net.apply(params, {}, token)
    assert classes is None
    p = jax.tree.map(np.asarray, params)
    for row, logit in zip(np.asarray(token), logits, strict=True):
        h, pooled = p["embed"]["embedding"][row], []
        for i, size in enumerate((1, 4)):
            kernel = p["convolutions"][str(i)]["kernel"]
            seen = [
                np.maximum(np.einsum("kc,kcf->f", h[t : t + size], kernel), 0)
                for t in range(7 - size)
            ]
            pooled.append(np.max(seen, 0))
        c = np.concatenate(pooled)
        gate = 1 / (1 + np.exp(-(c @ p["gate"]["kernel"])))
        value = np.maximum(c @ p["value"]["kernel"], 0)
        out = (gate * value + (1 - gate) * c) @ p["out"]["kernel"]
        np.testing.assert_allclose(logit, out[0], rtol=1e-4, atol=1e-5)
    (soft, _), _ = net.apply(params, {}, jax.nn.one_hot(token, 5))
    np.testing.assert_allclose(soft, logits, rtol=1e-4, atol=1e-5)
    (wet, _), _ = net.apply(params, {}, token, key=jax.random.key(1), train=True)
    assert jnp.abs(wet - logits).max() > 1e-3


def count(build):
    params, _ = jax.eval_shape(functional(build).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_sizes_are_those_of_the_papers():
    """The authors' code has two logits instead of one, and 1,720 features."""
    seqgan = count(lambda rngs: text_cnn.Discriminator(5000, 20, rngs=rngs))
    pairs = list(zip(text_cnn.SIZES, text_cnn.FEATURES, strict=True))
    convolutions = sum(64 * size * n + n for size, n in pairs)
    assert seqgan == 5000 * 64 + convolutions + 2 * (1720**2 + 1720) + 1720 + 1
    blocks = 5 * 2 * (5 * 512 * 512 + 512)
    generator = count(lambda rngs: text_residual.Generator(128, 96, 32, rngs=rngs))
    assert generator == blocks + 129 * 32 * 512 + 513 * 96
    critic = count(lambda rngs: text_residual.Discriminator(96, 32, rngs=rngs))
    assert critic == blocks + 97 * 512 + 32 * 512 + 1


def test_residual_networks_give_distributions_and_logits():
    net = functional(lambda rngs: text_residual.Generator(4, 5, 6, width=8, depth=2, rngs=rngs))
    params, _ = net.init(jax.random.key(0))
    shares, _ = net.apply(params, {}, draw(3, 4))
    assert shares.shape == (3, 6, 5)
    np.testing.assert_allclose(shares.sum(-1), 1.0, rtol=1e-5)
    critic = functional(lambda rngs: text_residual.Discriminator(5, 6, width=8, depth=1, rngs=rngs))
    params, _ = critic.init(jax.random.key(1))
    (logits, classes), _ = critic.apply(params, {}, shares)
    assert classes is None
    p = jax.tree.map(np.asarray, params)

    def convolved(x, layer):
        wide = np.pad(x, ((0, 0), (2, 2), (0, 0))) if len(layer["kernel"]) == 5 else x
        size = len(layer["kernel"])
        taps = [wide[:, i : i + 6] @ layer["kernel"][i] for i in range(size)]
        return sum(taps) + layer["bias"]

    h = convolved(np.asarray(shares), p["into"])
    block = p["blocks"]["0"]
    inner = convolved(np.maximum(h, 0), block["first"])
    h = h + 0.3 * convolved(np.maximum(inner, 0), block["second"])
    plain = h.reshape(3, -1) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(logits, plain[:, 0], rtol=1e-4, atol=1e-5)
