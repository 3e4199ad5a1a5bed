"""Encoder, decoder and PatchGAN against diffusers and PyTorch, all with the same drawn weights."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from genjax.config import ConfigError
from genjax.networks.autoencoder_kl import RULES, Decoder, Encoder
from genjax.networks.patch_discriminator import RULES as PATCH_RULES
from genjax.networks.patch_discriminator import Discriminator
from genjax.nn.functional import functional
from genjax.parallel.rules import first_match, path_name

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "autoencoder_kl.npz")
KEY = jax.random.key(0)


def drawn(shapes):
    """The weights that the peer had: the same draws, in the same order, as in its script."""
    rng, params, mutable = np.random.default_rng(int(GOLDEN["seed"])), {}, {}
    for name, shape in json.loads(str(shapes)).items():
        if name.endswith("kernel"):
            scale = 1 / np.sqrt(np.prod(shape[:-1]))
            value = rng.standard_normal(shape, np.float32) * np.float32(scale)
        elif name.endswith(("scale", "var")):
            value = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            value = rng.normal(0.0, 0.1, shape).astype(np.float32)
        kind = mutable if name.endswith(("mean", "var")) else params
        kind[tuple(name.split("/"))] = value
    return unflatten_dict(params), unflatten_dict(mutable)


def same_shapes(net, params, mutable):
    expected = jax.eval_shape(net.init, KEY)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in ((params, mutable), expected)]
    assert shapes[0] == shapes[1]


def coder(cls, features):
    channels = tuple(int(c) for c in GOLDEN["channels"])
    return functional(
        lambda rngs: cls(
            GOLDEN["x"].shape[1:],
            features,
            channels=channels,
            blocks=int(GOLDEN["blocks"]),
            rngs=rngs,
        )
    )


@pytest.mark.parametrize(
    ("name", "cls", "given", "expected"),
    [("encoder", Encoder, "x", "moments"), ("decoder", Decoder, "z", "decoded")],
)
def test_it_is_diffusers(name, cls, given, expected):
    x = GOLDEN[given]
    net = coder(cls, GOLDEN["moments" if name == "encoder" else "z"].shape[-1])
    params = drawn(GOLDEN["shapes"])[0][name]
    same_shapes(net, params, {})
    found, _ = jax.jit(net.apply)(params, {}, x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, GOLDEN[expected], atol=1e-5)


def patches(shape, **options):
    return functional(lambda rngs: Discriminator(shape, rngs=rngs, **options))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("train", [False, True])
def test_patches_are_judged_as_by_pytorch(number, train):
    """Even and odd sizes, of which the last row and column may be seen by no patch."""
    x = GOLDEN[f"patch/{number}/x"]
    options = {"channels": int(GOLDEN["patch/channels"]), "layers": int(GOLDEN["patch/layers"])}
    net = patches(x.shape[1:], **options)
    params, mutable = drawn(GOLDEN["patch/shapes"])
    same_shapes(net, params, mutable)
    found, changed = jax.jit(net.apply, static_argnames="train")(params, mutable, x, train=train)
    expected = GOLDEN[f"patch/{number}/{'train' if train else 'eval'}"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    moved = np.abs(changed["norms"]["1"]["mean"] - mutable["norms"]["1"]["mean"]).max()
    assert (moved > 0) == train


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_its_patch_and_no_more(layers, side):
    """Isola et al. 2017, appendix 6.1.2: 16 x 16, 34 x 34 (as by arithmetic), 70 x 70."""
    size, at = side + 8, 3  # the first logit whose patch begins within the image
    net = patches((size, size, 1), channels=2, layers=layers, norm="none")
    shapes, _ = jax.eval_shape(net.init, KEY)
    params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), shapes)  # so that nothing cancels
    slope = jax.jit(jax.grad(lambda x: net.apply(params, {}, x)[0][0, at, at]))
    seen = np.abs(slope(jnp.ones((1, size, size, 1))))[0, :, :, 0] > 0
    assert seen.any(0).sum() == seen.any(1).sum() == side
    assert seen.sum() == side**2


def test_rules_cover_all_leaves():
    for net, rules in (
        (functional(lambda rngs: Encoder((8, 8, 1), 4, channels=(4, 8), rngs=rngs)), RULES),
        (functional(lambda rngs: Decoder((8, 8, 1), 4, channels=(4, 8), rngs=rngs)), RULES),
        (patches((32, 32, 3), channels=4), PATCH_RULES),
    ):
        leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(net.init, KEY))
        for path, _ in leaves:
            first_match(rules, path_name(path), "sharding")


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda rngs: Encoder((28, 28, 1), 8, channels=(4, 4, 4, 4), rngs=rngs), "a multiple of 8"),
        (lambda rngs: Decoder((8, 8, 1), 4, channels=(), rngs=rngs), "one width per level"),
        (
            lambda rngs: Discriminator((8, 8, 1), layers=3, rngs=rngs),
            "layers=3: too many for images",
        ),
        (lambda rngs: Discriminator((8, 8, 1), norm="bach", rngs=rngs), "Nearest: batch"),
    ],
)
def test_what_cannot_be_built_is_refused(build, says):
    with pytest.raises(ConfigError, match=says):
        functional(build)
