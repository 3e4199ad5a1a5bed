"""EDM2's U-Net against PyTorch (tests/golden/make_edm2.py), its published sizes and its start."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from genjax.config import ConfigError
from genjax.networks.edm2_unet import RULES, Block, Network, Options, Place, Uncertainty
from genjax.nn.functional import functional
from genjax.nn.magnitude import normalise
from genjax.parallel.rules import first_match

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "edm2.npz")
SMALL = {"channels": 4, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "head_size": 4}
BALANCES = {"label_balance": 0.4, "attention_balance": 0.25, "concat_balance": 0.6}
X, T, LABEL = (jnp.asarray(GOLDEN[name]) for name in ("x", "t", "label"))


@functools.cache
def make(num_classes=3, **options):
    net = functional(lambda rngs: Network((8, 4, 3), 2, num_classes, **SMALL | options, rngs=rngs))
    return net._replace(apply=jax.jit(net.apply, static_argnames="train"))


def one_level(**options):
    """A network without resampling, which compiles in half the time, and parameters for it."""
    net = make(multipliers=(1,), attention=(), **options)
    rng = np.random.default_rng(0)
    params, mutable = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32),
        jax.eval_shape(net.init, jax.random.key(0)),
    )
    return net, params, mutable


def stored(head):
    names = [name for name in GOLDEN if name.startswith(head)]
    return unflatten_dict({tuple(n.removeprefix(head).split("/")): GOLDEN[n] for n in names})


PARAMS, MUTABLE = stored("params/"), {"fourier": stored("fourier/")}


def test_values_and_gradients_are_pytorchs():
    net = make(**BALANCES, clip=1.6)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (PARAMS, MUTABLE)]
    init = jax.eval_shape(net.init, jax.random.key(0))
    assert [jax.tree.map(jnp.shape, tree) for tree in init] == shapes

    def total(params, x):
        made, _ = net.apply(params, MUTABLE, x, T, LABEL)
        return (made * GOLDEN["along"]).sum(), made

    (of_params, of_x), made = jax.jit(jax.grad(total, (0, 1), has_aux=True))(PARAMS, X)
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, GOLDEN["y"], atol=1e-5)
    np.testing.assert_allclose(of_x, GOLDEN["gradient/x"], atol=1e-5)
    expected = flatten_dict(stored("gradient/params/"), sep="/")
    for name, leaf in flatten_dict(of_params, sep="/").items():
        assert np.abs(leaf).max() > 1e-3, name
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_uncertainty_is_pytorchs():
    net = functional(lambda rngs: Uncertainty(4, rngs=rngs))
    params, mutable = {"linear": {"mp_kernel": GOLDEN["uncertainty/mp_kernel"]}}, MUTABLE
    made, _ = net.apply(params, mutable, T)
    np.testing.assert_allclose(made, GOLDEN["uncertainty/y"], atol=1e-5)


@pytest.mark.parametrize(("channels", "millions"), [(128, 125), (192, 280), (256, 498)])
def test_published_sizes(channels, millions):
    """Table 2: millions of parameters of XS, S and M for the latents of ImageNet-512."""
    build = functools.partial(Network, (64, 64, 4), 4, 1000, channels=channels)
    params = nnx.state(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))), nnx.Param)
    assert round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6) == millions


def test_starts_as_zero_with_unit_weights_and_the_noise_level_enters_by_gains():
    net, _, _ = one_level()
    params, mutable = net.init(jax.random.key(0))
    made, _ = net.apply(params, mutable, X, T, LABEL)
    assert made.shape == (3, 8, 4, 2)
    np.testing.assert_array_equal(made, 0.0)
    for a, b in zip(*map(jax.tree.leaves, (params, normalise(params))), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6)
    params["gain"] = jnp.ones(())
    first, again = (net.apply(params, mutable, X, t, LABEL)[0] for t in (T, T + 300))
    np.testing.assert_array_equal(first, again)
    assert 0.5 < np.std(first) < 2


@pytest.mark.parametrize("decodes", [False, True])
def test_blocks_preserve_magnitude_at_the_start(decodes):
    options = Options(16, 64, 0.0, 0.3, 0.3, 256.0)
    block = Block(Place(96, 128, decodes), options, jnp.float32, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 24, 24, 96))
    made = jax.jit(block)(x, jnp.ones((2, 16)))[:, 2:-2, 2:-2]  # outer pixels see zeros beside them
    np.testing.assert_allclose(jnp.sqrt(jnp.square(made).mean()), 1, rtol=3e-2)


def test_jvp_is_a_finite_difference():
    """As consistency models and MeanFlow take it: along images and noise levels at once."""
    net, params, mutable = one_level()
    dx, dt = jnp.asarray(np.random.default_rng(1).normal(size=X.shape), jnp.float32), 50.0

    def f(x, t):
        return net.apply(params, mutable, x, t, LABEL)[0]

    _, found = jax.jit(lambda x, t: jax.jvp(f, (x, t), (dx, jnp.full(3, dt))))(X, T)
    h = 2e-3
    expected = (f(X + h * dx, T + h * dt) - f(X - h * dx, T - h * dt)) / (2 * h)
    assert np.abs(found).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=3e-3 * np.abs(found).max())


def test_no_label_is_the_null_class_and_classes_differ():
    net, params, mutable = one_level()
    null, _ = net.apply(params, mutable, X, T, jnp.full(3, 3))
    np.testing.assert_allclose(net.apply(params, mutable, X, T)[0], null, atol=1e-6)
    one, _ = net.apply(params, mutable, X, T, jnp.full(3, 1))
    assert np.abs(one - null).max() > 1e-2


def test_dropout_acts_in_training_only_and_by_key():
    net, params, mutable = one_level()
    plain, _ = net.apply(params, mutable, X, T, LABEL)
    net, _, _ = one_level(dropout=0.5)
    np.testing.assert_allclose(net.apply(params, mutable, X, T, LABEL)[0], plain, atol=1e-6)
    a, b, c = (
        net.apply(params, mutable, X, T, LABEL, key=jax.random.key(s), train=True)[0]
        for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    assert not np.allclose(a, plain)


def test_bfloat16_compute_is_close_and_the_result_float32():
    net, params, mutable = one_level()
    exact, _ = net.apply(params, mutable, X, T, LABEL)
    rough, _ = one_level(dtype=jnp.bfloat16)[0].apply(params, mutable, X, T, LABEL)
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


def test_every_leaf_has_a_rule():
    for name in flatten_dict(PARAMS | MUTABLE, sep="/"):
        assert first_match(RULES, f"params/denoiser/{name}", "sharding"), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"multipliers": (1, 1, 1, 1)}, "8 x 4 cannot be halved 3 times.*multiples of 8"),
        ({"multipliers": ()}, "number of multipliers=0"),
        ({"multipliers": (1, 0)}, r"multipliers\[1\]=0"),
        ({"attention": (16,)}, r"no level of height \[16\]; the levels are \[8, 4\]"),
        ({"head_size": 3}, r"head_size=3 does not divide the channels \[8\]"),
        ({"attention": (8,), "head_size": 8}, r"head_size=8 does not divide the channels \[4\]"),
        ({"blocks": 0}, "blocks=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"concat_balance": 1.5}, "concat_balance=1.5"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"num_classes": -1}, "num_classes=-1"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        make(**wrong)


def test_a_vector_or_a_label_that_it_cannot_use_is_refused():
    net = make(num_classes=0)
    params, mutable = jax.eval_shape(net.init, jax.random.key(0))
    apply = functools.partial(jax.eval_shape, net.apply, params, mutable, X, T)
    assert apply()[0].shape == (3, 8, 4, 2)
    with pytest.raises(ConfigError, match="num_classes=0"):
        apply(LABEL)
    with pytest.raises(ValueError, match=r"vector: of shape \(3, 5\)"):
        apply(vector=jnp.ones((3, 5)))
