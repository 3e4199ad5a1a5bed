"""Networks over tokens: equal to torch's, causal, the same step by step, and a distribution."""

import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from genjax.config import ConfigError, construct
from genjax.networks import pixelcnn, token_transformer
from genjax.networks.transformer import Transformer
from genjax.nn.functional import functional

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "token_networks.npz")
KEY = jax.random.key(0)
SMALL = {
    "token_transformer": (token_transformer.Network, {"width": 16, "depth": 2, "heads": 2}),
    "pixelcnn": (pixelcnn.Network, {"width": 8, "depth": 3}),
    "pixelcnn of 5 x 5": (pixelcnn.Network, {"width": 8, "depth": 3, "kernel_size": 5}),
}


def by_head(layer, heads):
    """Columns of queries, keys and values [..., 3 N H] as each head's three, [..., N, 3 H]."""
    return {
        name: array.reshape(*array.shape[:-1], 3, heads, -1)
        .swapaxes(-3, -2)
        .reshape(*array.shape[:-1], heads, -1)
        for name, array in layer.items()
    }


def test_the_transformer_is_torchs():
    golden = {name[12:]: GOLDEN[name] for name in GOLDEN if name.startswith("transformer/")}
    net = functional(lambda rngs: Transformer(width=12, depth=2, heads=3, rngs=rngs))

    def stacked(name):
        return np.stack([golden[f"layers.{i}.{name}"] for i in range(2)])

    def linear(name, joint="."):
        return {
            "kernel": stacked(f"{name}{joint}weight").swapaxes(1, 2),
            "bias": stacked(f"{name}{joint}bias"),
        }

    def norm(name):
        return {"scale": stacked(f"{name}.weight"), "bias": stacked(f"{name}.bias")}

    blocks = {
        "qkv": by_head(linear("self_attn.in_proj", "_"), 3),
        "merge": linear("self_attn.out_proj"),
        "up": linear("linear1"),
        "down": linear("linear2"),
        "norm1": norm("norm1"),
        "norm2": norm("norm2"),
    }
    last = {"scale": golden["norm.weight"], "bias": golden["norm.bias"]}
    params = {"blocks": blocks, "norm": last}
    shapes = jax.eval_shape(net.init, KEY)[0]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    (y, _), _ = net.apply(params, {}, golden["x"])
    np.testing.assert_allclose(y, golden["y"], atol=1e-5)


def test_the_layers_of_pixelcnn_are_masked_convolutions():
    def cell(kernel, offsets):  # (rows above, columns to the left) of the middle of the kernel
        middle = kernel.shape[-1] // 2
        taps = [kernel[:, :, middle - down, middle - right].T for down, right in offsets]
        return np.concatenate(taps)

    x = GOLDEN["pixelcnn/x"].transpose(0, 2, 3, 1)
    above = left = x
    for i, first in enumerate((True, False)):
        golden = {
            name.split("/", 2)[2]: GOLDEN[name]
            for name in GOLDEN
            if name.startswith(f"pixelcnn/{i}/")
        }
        layer = pixelcnn.Layer(3, 5, first, 0.0, jnp.float32, nnx.Rngs(0))
        for name in ("vertical", "horizontal"):
            conv = getattr(layer, name)
            conv.linear.kernel[...] = cell(golden[f"{name}/kernel"], conv.offsets)
            conv.linear.bias[...] = golden[f"{name}/bias"]
        for name in ("link", "out"):
            linear = getattr(layer, name)
            linear.kernel[...] = golden[f"{name}/kernel"][:, :, 0, 0].T
            linear.bias[...] = golden[f"{name}/bias"]
        layer.condition.kernel[...] = golden["condition/kernel"].T
        above, left = layer(above, left, GOLDEN["pixelcnn/label"], None, False)
        for found, name in ((above, "above"), (left, "left")):
            np.testing.assert_allclose(found.transpose(0, 3, 1, 2), golden[name], atol=1e-5)


@pytest.fixture(scope="module", params=itertools.product(SMALL, (1, 2)), ids=str)
def small(request):
    """(jitted apply, params, shape, vocabulary): random weights large enough that all matters."""
    name, depth = request.param
    shape = (3, 4, depth)
    cls, options = SMALL[name]
    net = functional(lambda rngs: cls(shape, 4, 3, **options, rngs=rngs))
    params, _ = jax.jit(net.init)(KEY)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    noisy = [p + 0.3 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
    return lambda *a, **k: net.apply(*a, **k)[0], tree.unflatten(noisy), shape, 4


def test_a_token_moves_the_logits_of_those_after_it_alone(small):
    apply, params, shape, K = small
    S = math.prod(shape)
    index = jax.random.randint(KEY, (1, S), 0, K)
    changed = jnp.where(jnp.eye(S, dtype=bool), (index + 1) % K, index)  # row s: token s differs
    label = jnp.ones(S + 1, jnp.int32)
    logits, _ = jax.jit(apply)(params, {}, jnp.concatenate([index, changed]), label)
    moved = np.abs(logits[1:] - logits[:1]).max(-1)  # [token changed, position]
    earlier = np.tril(np.ones((S, S), bool))
    assert (moved[earlier] == 0).all()
    following = moved[np.arange(S - 1), np.arange(1, S)]
    assert (following > 1e-4).all()  # and the next one does depend on it


def test_the_last_token_sees_all_and_the_label_all_tokens(small):
    apply, params, shape, K = small
    S = math.prod(shape)
    index = jax.random.randint(KEY, (2, S), 0, K)
    logits, _ = jax.jit(apply)(params, {}, jnp.tile(index[:1], (2, 1)), jnp.array([0, 2]))
    assert (np.abs(logits[0] - logits[1]).max(-1) > 1e-4).all()


def test_one_by_one_is_all_at_once(small):
    apply, params, shape, K = small
    S = math.prod(shape)
    index, label = jax.random.randint(KEY, (3, S), 0, K), jnp.arange(3)
    whole, _ = jax.jit(apply)(params, {}, index, label)
    begin = jax.jit(lambda: apply(params, {}, jnp.full(3, 3), label, position=0))
    logits, cache = begin()
    np.testing.assert_allclose(logits, whole[:, 0], atol=1e-5)

    def step(cache, position):
        before = jnp.take(index, position - 1, axis=1)
        logits, cache = apply(params, {}, before, label, position=position, cache=cache)
        return cache, logits

    _, rest = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(1, S)))(cache)
    np.testing.assert_allclose(rest.swapaxes(0, 1), whole[:, 1:], atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_the_probabilities_of_all_images_add_up_to_one(name):
    cls, options = SMALL[name]
    net = functional(lambda rngs: cls((2, 2, 2), 2, **options, rngs=rngs))
    params, mutable = jax.jit(net.init)(jax.random.key(1))
    images = jnp.array(list(itertools.product(range(2), repeat=8)))
    (logits, _), _ = jax.jit(net.apply)(params, mutable, images)
    each = jax.nn.log_softmax(logits)
    total = jnp.take_along_axis(each, images[..., None], -1).sum((1, 2))
    assert float(jnp.exp(total).sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(3, 3, 1), (3, 3, 2)])
def test_bfloat16_is_near_float32(name, shape):
    cls, options = SMALL[name]
    index = jax.random.randint(KEY, (2, math.prod(shape)), 0, 5)

    def run(dtype):
        net = functional(lambda rngs: cls(shape, 5, **options, dtype=dtype, rngs=rngs))
        params, _ = net.init(KEY)

        def total(params):
            (logits, _), _ = net.apply(params, {}, index)
            return jnp.square(logits).mean(), logits

        slopes, logits = jax.jit(jax.grad(total, has_aux=True))(params)
        return logits, jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(slopes)])

    (logits, slope), (low, low_slope) = run(jnp.float32), run(jnp.bfloat16)
    assert low.dtype == jnp.float32
    assert np.linalg.norm(low - logits) < 0.03 * np.linalg.norm(logits)
    assert np.linalg.norm(low_slope - slope) < 0.05 * np.linalg.norm(slope)


def test_dropout_is_drawn_for_each_layer_and_only_in_training():
    net = functional(
        lambda rngs: token_transformer.Network(
            (2, 2, 1), 4, width=16, depth=2, dropout=0.5, rngs=rngs
        )
    )
    params, mutable = jax.jit(net.init)(KEY)
    params = jax.tree.map(lambda p: p + 0.1, params)
    index = jnp.zeros((1, 4), jnp.int32)
    apply = jax.jit(
        lambda key, train: net.apply(params, mutable, index, key=key, train=train)[0][0],
        static_argnums=1,
    )
    still, a, b = apply(KEY, False), apply(KEY, True), apply(jax.random.key(1), True)
    np.testing.assert_array_equal(still, apply(jax.random.key(1), False))
    assert min(np.abs(x - y).max() for x, y in ((a, still), (b, still), (a, b))) > 1e-3


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (token_transformer.Network, {"width": 10, "heads": 4}, "a divisor of width=10"),
        (token_transformer.Network, {"depth": 0}, "at least 1"),
        (pixelcnn.Network, {"kernel_size": 4}, "odd"),
        (pixelcnn.Network, {"depth": 1}, "at least 2"),
    ],
)
def test_sizes_that_cannot_be(cls, options, words):
    given = {"shape": (2, 2, 1), "vocabulary_size": 4, "rngs": nnx.Rngs(0)}
    with pytest.raises(ConfigError, match=words):
        construct(cls, ConfigDict(options), "model", **given)
