"""The U-Net: its blocks against their formulas, and what it must and must not depend on."""

import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from genjax.config import ConfigError, construct
from genjax.networks.unet import AttentionBlock, Network, ResidualBlock
from genjax.nn.functional import functional
from genjax.parallel.rules import path_name

MODEL = {
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (8,),
    "heads": 2,
    "dropout": 0.0,
    "patch_size": 1,
}


def make(num_classes=0, dtype=jnp.float32, resolution=8, width=0, **model):
    config = ConfigDict({**MODEL, **model})
    net = functional(
        lambda rngs: construct(
            Network,
            config,
            "model.denoiser",
            shape=(resolution, width or resolution, 3),
            out_channels=3,
            num_classes=num_classes,
            dtype=dtype,
            rngs=rngs,
        )
    )
    net = net._replace(apply=jax.jit(net.apply, static_argnames="train"))
    shapes, mutable = jax.eval_shape(net.init, jax.random.key(0))
    # Not the initial values: the output and the second convolutions start at zero.
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(scale=0.2, size=s.shape), jnp.float32), shapes
    )
    return net, params, mutable


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
T = jnp.array([3.0, 700.0])


def group_norm(x, groups):
    y = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    y = (y - y.mean((1, 3), keepdims=True)) / np.sqrt(y.var((1, 3), keepdims=True) + 1e-6)
    return y.reshape(x.shape)


def test_attention_block_is_its_formula():
    block = AttentionBlock(8, 2, jnp.float32, nnx.Rngs(0))
    block.out.kernel[...] = 0.3 * jax.random.normal(jax.random.key(1), (8, 8))
    x = np.random.default_rng(0).normal(size=(1, 3, 3, 8))
    h = group_norm(x, 2).reshape(9, 8)
    q, k, v = (
        h @ np.asarray(layer.kernel[...], np.float64)
        for layer in (block.query, block.key, block.value)
    )
    heads = []
    for n in range(2):
        part = slice(4 * n, 4 * n + 4)
        weights = np.exp(q[:, part] @ k[:, part].T / 2.0)
        heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
    out = np.concatenate(heads, 1) @ np.asarray(block.out.kernel[...], np.float64)
    expected = x + out.reshape(1, 3, 3, 8)
    np.testing.assert_allclose(block(jnp.asarray(x, jnp.float32)), expected, atol=2e-5)


def test_residual_block_is_its_formula_where_convolutions_are_pointwise():
    """Kernels that are zero but in the centre make both convolutions products over channels."""
    block = ResidualBlock(8, 4, 5, 0.0, jnp.float32, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(size=(8, 4)), rng.normal(size=(4, 4))
    for layer, w in ((block.conv1, w1), (block.conv2, w2)):
        layer.kernel[...] = jnp.zeros(layer.kernel.shape).at[1, 1].set(w)
    silu = lambda a: a / (1 + np.exp(-a))  # noqa: E731
    x, e = rng.normal(size=(2, 4, 4, 8)), rng.normal(size=(2, 5))
    h = silu(group_norm(x, 2)) @ w1
    h = h + (silu(e) @ np.asarray(block.time.kernel[...], np.float64))[:, None, None]
    h = silu(group_norm(h, 1)) @ w2
    expected = h + x @ np.asarray(block.shortcut.kernel[0, 0], np.float64)
    found = block(jnp.asarray(x, jnp.float32), jnp.asarray(e, jnp.float32), None, False)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_starts_as_zero_and_takes_time_and_label():
    net, params, mutable = make(num_classes=3)
    initial, _ = net.init(jax.random.key(0))
    label = jnp.array([0, 2])
    zero, _ = net.apply(initial, mutable, X, T, label)
    assert zero.shape == X.shape
    assert zero.dtype == jnp.float32
    np.testing.assert_array_equal(zero, 0.0)
    base, _ = net.apply(params, mutable, X, T, label)
    for t, y in ((T + 1, label), (T, jnp.array([1, 2])), (T, jnp.array([3, 2]))):
        other, _ = net.apply(params, mutable, X, t, y)
        assert np.abs(other - base)[0].max() > 1e-3


def test_examples_do_not_see_each_other():
    net, params, mutable = make()

    def first(x):
        return net.apply(params, mutable, x, T)[0][0].sum()

    gradient = jax.grad(first)(X)
    assert np.abs(gradient[0]).max() > 0
    np.testing.assert_array_equal(gradient[1], 0.0)


def test_every_parameter_matters():
    net, params, mutable = make(num_classes=2, multipliers=(1, 2, 2), patch_size=2, resolution=16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)

    def loss(p):
        return jnp.square(net.apply(p, mutable, x, T, jnp.array([0, 1]))[0]).mean()

    gradient = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        if "'key']['bias']" not in name:  # softmax does not see a constant added to all scores
            assert np.abs(leaf).max() > 0, name


def test_attention_is_at_the_resolutions_asked_for():
    for attention, levels in (((), set()), ((8,), {"0"}), ((4,), {"1"}), ((8, 4), {"0", "1"})):
        _, params, _ = make(attention=attention)
        for side in ("down", "up"):
            assert {k for k, v in params[side].items() if v.get("attention")} == levels
        assert params["middle_attention"]


def test_dropout_acts_in_training_only_and_by_key():
    net, params, mutable = make(dropout=0.5)
    plain, _ = net.apply(params, mutable, X, T)
    a, b, c = (
        net.apply(params, mutable, X, T, key=jax.random.key(s), train=True)[0] for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    assert not np.allclose(a, plain)


def test_bfloat16_compute_is_close_and_parameters_stay_float32():
    net, params, mutable = make()
    low, _, _ = make(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    exact, _ = net.apply(params, mutable, X, T)
    rough, _ = low.apply(params, mutable, X, T)
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ConfigError, match=r"10 x 10.*multiple of 4"):
        make(resolution=10, multipliers=(1, 1, 1))


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ConfigError, match=r"square images, got 8 x 12"):
        make(width=12)


NAMES = (  # ours -> UNet2DModel's, one after the other
    (r"^down/(\d+)/blocks/(\d+)", r"down_blocks.\1.resnets.\2"),
    (r"^down/(\d+)/attention/(\d+)", r"down_blocks.\1.attentions.\2"),
    (r"^down/(\d+)/resample", r"down_blocks.\1.downsamplers.0.conv"),
    (r"^up/(\d+)/blocks/(\d+)", r"up_blocks.\1.resnets.\2"),
    (r"^up/(\d+)/attention/(\d+)", r"up_blocks.\1.attentions.\2"),
    (r"^up/(\d+)/resample", r"up_blocks.\1.upsamplers.0.conv"),
    (r"^middle(\d)/", lambda found: f"mid_block.resnets.{int(found[1]) - 1}/"),
    (r"^middle_attention", "mid_block.attentions.0"),
    (r"^time(\d)", r"time_embedding.linear_\1"),
    (r"^stem", "conv_in"),
    (r"^head", "conv_out"),
    (r"^norm", "conv_norm_out"),
    (r"/time/", "/time_emb_proj/"),
    (r"/shortcut/", "/conv_shortcut/"),
    (r"(attentions.\d+)/norm", r"\1/group_norm"),
    (r"/(query|key|value)/", lambda found: f"/to_{found[1][0]}/"),
    (r"/out/", "/to_out.0/"),
    (r"/(kernel|scale)$", "/weight"),
)


def as_drawn(path, leaf):
    """The weight that tests/golden/make_unet.py gave the peer's of this name."""
    name = path
    for pattern, to in NAMES:
        name = re.sub(pattern, to, name)
    name = re.sub(r"up_blocks.(\d)", lambda found: f"up_blocks.{1 - int(found[1])}", name)
    name = name.replace("/", ".")
    order = (*range(leaf.ndim)[::-1],) if leaf.ndim < 4 else (3, 2, 0, 1)
    shape = tuple(leaf.shape[i] for i in order)
    made = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if leaf.ndim == 1:
        return (0.1 * made + ("norm" in name and name.endswith("weight"))).astype(np.float32)
    made = (made / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return made.transpose(np.argsort(order))


def test_it_is_diffusers():
    """UNet2DModel on the same weights, with what tests/golden/make_unet.py says of its options."""
    golden = np.load(Path(__file__).parent.parent / "golden" / "unet.npz")
    sizes = dict(channels=128, multipliers=(1, 1), blocks=1, attention=(4,), heads=4)
    net = functional(
        lambda rngs: Network(
            (8, 8, 2), 3, dropout=0.0, patch_size=1, dtype=jnp.float32, rngs=rngs, **sizes
        )
    )
    shapes, mutable = jax.eval_shape(net.init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: as_drawn(path_name(path), leaf), shapes
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == golden["parameters"]
    found, _ = jax.jit(net.apply)(params, mutable, golden["x"], golden["t"])
    np.testing.assert_allclose(found, golden["y"], atol=1e-5 * np.abs(golden["y"]).max())
