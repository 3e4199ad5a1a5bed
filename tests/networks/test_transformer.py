"""The transformer's options against torch and brute force, remat, and parameters layer by layer."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genjax.config import ConfigError
from genjax.networks.transformer import Transformer, unstacked
from genjax.nn.attention import attention
from genjax.nn.functional import functional
from genjax.nn.layers import RMSNorm

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "sequence_networks.npz")
KEY = jax.random.key(0)


def make(size=0.3, **options):
    """The network of width 16, and parameters large enough that all matters."""
    net = functional(lambda rngs: Transformer(**({"width": 16} | options), rngs=rngs))
    rng = np.random.default_rng(0)
    return net, jax.tree.map(
        lambda p: jnp.asarray(size * rng.normal(size=p.shape), p.dtype),
        jax.eval_shape(net.init, KEY)[0],
    )


def test_rms_norm_is_torchs():
    norm = RMSNorm(12, eps=1e-2)
    norm.scale[...] = GOLDEN["rms/scale"]
    np.testing.assert_allclose(norm(jnp.asarray(GOLDEN["rms/x"])), GOLDEN["rms/y"], atol=1e-6)
    low = norm(jnp.full((1, 12), 200.0, jnp.bfloat16))  # its square is no bfloat16's business
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low[0].astype(float), GOLDEN["rms/scale"], rtol=0.01)


@pytest.mark.parametrize("heads_of_mask", [1, 6])
def test_attention_with_fewer_heads_of_keys(heads_of_mask):
    B, T, S, N, K, D = 2, 3, 5, 6, 2, 4
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=s) for s in ((B, T, N, D), (B, S, K, D), (B, S, K, D)))
    mask = rng.random((B, heads_of_mask, T, S)) < 0.5
    mask[..., 0] = True
    expected = np.empty_like(q)
    for b, t, n in np.ndindex(B, T, N):
        scores = k[b, :, n // 3] @ q[b, t, n] / np.sqrt(D)
        weights = np.where(mask[b, n % heads_of_mask, t], np.exp(scores), 0)
        expected[b, t, n] = weights / weights.sum() @ v[b, :, n // 3]
    given = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    np.testing.assert_allclose(attention(*given, jnp.asarray(mask)), expected, atol=1e-5)
    flat = attention(*given, jnp.asarray(mask[0, 0]))[0, :, 0]
    alone = attention(*given, jnp.asarray(mask[:, :1]))[0, :, 0]
    np.testing.assert_allclose(flat, alone, atol=1e-6)
    draws = {"rate": 0.5, "draws": KEY}
    np.testing.assert_array_equal(attention(*given, **draws), attention(*given))
    dropped = attention(*given, **draws, train=True)
    assert np.abs(dropped - attention(*given)).max() > 0.1


def by_head(layer, heads):
    """Columns of queries, keys and values [..., 3 N H] as each head's three, [..., N, 3 H]."""
    return {
        name: array.reshape(*array.shape[:-1], 3, heads, -1)
        .swapaxes(-3, -2)
        .reshape(*array.shape[:-1], heads, -1)
        for name, array in layer.items()
    }


def test_the_norm_behind_the_sum_looking_both_ways_is_torchs():
    golden = {name[5:]: GOLDEN[name] for name in GOLDEN if name.startswith("post/")}
    options = {"width": 12, "depth": 2, "heads": 3, "hidden": 24, "activation": "relu"}
    net, own = make(**options, norm_first=False, causal=False)

    def stacked(name):
        return np.stack([golden[f"layers.{i}.{name}"] for i in range(2)])

    def linear(name, joint="."):
        kernel = stacked(f"{name}{joint}weight").swapaxes(1, 2)
        return {"kernel": kernel, "bias": stacked(f"{name}{joint}bias")}

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
    assert jax.tree.map(np.shape, {"blocks": blocks}) == jax.tree.map(np.shape, own)
    real = ~golden["pad"]
    (y, _), _ = jax.jit(net.apply)({"blocks": blocks}, {}, golden["x"], segment=real.astype(int))
    np.testing.assert_allclose(y[real], golden["y"][real], atol=1e-5)
    assert np.isfinite(y).all()


def test_what_is_not_kept_for_the_backward_pass_is_computed_again():
    """The less is kept the smaller it is, and the gradient is the same."""
    x = jax.random.normal(KEY, (2, 8, 16))
    kept, slopes = {}, {}
    for remat in ("none", "dots", "full"):
        net, params = make(depth=2, heads=2, remat=remat, dropout=0.3)

        def out(params, net=net):
            return net.apply(params, {}, x, key=KEY, train=True)[0][0]

        pull = jax.eval_shape(lambda params, out=out: jax.vjp(out, params)[1], params)
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(pull))
        slopes[remat] = jax.jit(jax.grad(lambda params, out=out: (out(params) ** 2).sum()))(params)
    assert kept["none"] > kept["dots"] > kept["full"]
    for remat in ("dots", "full"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            slopes[remat],
            slopes["none"],
        )


@pytest.mark.parametrize("depth", [1, 3])
def test_parameters_layer_by_layer_give_the_same(depth):
    net, params = make(depth=depth, heads=4, kv_heads=2, rotary=True, activation="geglu")
    x = jax.random.normal(KEY, (2, 5, 16))
    segment = jnp.array([[1] * 4, [0, 1, 1, 1]])

    @jax.jit
    def run(params):
        y, cache = net.apply(params, {}, x[:, :4], segment=segment, capacity=6)[0]
        return (y, *net.apply(params, {}, x[:, 4:], cache=cache)[0])

    y, z, cache = run(params)
    found = run(unstacked(params))
    np.testing.assert_allclose(found[0], y, atol=1e-5)
    np.testing.assert_allclose(found[1], z, atol=1e-5)
    assert [len(found[2].key), found[2].key[0].shape] == [depth, (2, 2, 6, 4)]
    np.testing.assert_allclose(np.concatenate(found[2].key), cache.key, atol=1e-5)
    np.testing.assert_array_equal(found[2].place, [[5, 4]])
    assert int(found[2].length) == 5
    whole, _ = jax.jit(net.apply)(params, {}, x)[0]
    np.testing.assert_allclose(jnp.concatenate([y, z], 1)[0], whole[0], atol=1e-5)


def test_bfloat16_stays_near_float32():
    def run(dtype):
        net, params = make(depth=2, heads=2, norm="rms", activation="swiglu", dtype=dtype)

        def total(params):
            y = net.apply(params, {}, jax.random.normal(KEY, (1, 6, 16)))[0][0]
            return (y.astype(jnp.float32) ** 2).sum(), y

        slopes, y = jax.jit(jax.grad(total, has_aux=True))(params)
        return y, slopes["blocks"]["qkv"]["kernel"]

    (y, slope), (low, low_slope) = run(jnp.float32), run(jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), y, atol=0.1)
    assert np.linalg.norm(low_slope - slope) < 0.05 * np.linalg.norm(slope)


@pytest.mark.parametrize("parameters", [lambda p: p, unstacked])
def test_a_cache_of_bfloat16_keeps_its_bits(parameters):
    """Of positions that were there at first, and of one that came later."""

    def run(dtype):
        net, params = make(depth=2, heads=2, dtype=dtype)
        x = 3 * jax.random.normal(KEY, (2, 6, 16))

        @jax.jit
        def go_on(params):
            _, cache = net.apply(params, {}, x[:, :4], capacity=7)[0]
            y, cache = net.apply(params, {}, x[:, 4:5], cache=cache)[0]
            return (y, *net.apply(params, {}, x[:, 5:], cache=cache)[0])

        y, z, cache = go_on(parameters(params))
        return np.concatenate([y, z], 1).astype(np.float32), np.concatenate(cache.key)

    (y, key), (low, bits) = run(jnp.float32), run(jnp.bfloat16)
    assert bits.dtype == np.uint16
    found = bits.reshape(key.shape).view(jnp.bfloat16).astype(np.float32)
    np.testing.assert_allclose(found, key, atol=0.02 * np.abs(key).max())
    held = np.abs(found.reshape(-1, 7, 8)).max((0, 2))
    assert [value > 0 for value in held] == [True] * 6 + [False]
    np.testing.assert_allclose(low, y, atol=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "heads=3: expected a divisor of width=16"),
        ({"kv_heads": 3}, "kv_heads=3: expected a divisor of heads=4"),
        ({"depth": 0}, "depth=0: expected at least 1"),
        ({"width": 0}, "width=0: expected at least 1"),
        ({"width": -8}, "width=-8: expected at least 1"),
        ({"hidden": -1}, "hidden=-1: expected at least 0"),
        ({"dropout": 1.0}, "dropout=1.0: expected at least 0 and below 1"),
        ({"attention_dropout": -1.0}, "attention_dropout=-1.0: expected at least 0"),
        ({"rotary": True, "rope_base": 0.0}, "rope_base=0.0: expected above 0"),
        ({"rotary": True, "rope_scaling": ("linear", 0.0)}, "rope_scaling=.*above 0"),
        ({"rotary": True, "rope_scaling": ("linear", "a")}, "rope_scaling=.*above 0"),
        ({"rotary": True, "rope_scaling": ("llama3", 8.0, 0.0, 4.0, 64)}, "rope_scaling=.*above 0"),
        ({"activation": "glu"}, "Nearest"),
        ({"norm": "batch"}, "expected one of layer, rms"),
        ({"remat": "some"}, "expected one of none, dots, full"),
        ({"rotary": True, "head_size": 5}, "head_size=5: expected an even number"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        Transformer(**({"width": 16, "depth": 1, "heads": 4} | options), rngs=nnx.Rngs(0))


def test_calls_that_cannot_be():
    net, params = make(depth=1, heads=2)
    x = jnp.zeros((1, 3, 16))
    with pytest.raises(ConfigError, match="capacity=2: expected at least 3"):
        net.apply(params, {}, x, capacity=2)
    (_, cache), _ = jax.eval_shape(lambda: net.apply(params, {}, x, capacity=4))
    with pytest.raises(ValueError, match="at most one of them"):
        net.apply(params, {}, x, cache=cache, segment=jnp.ones((1, 3), jnp.int32))
