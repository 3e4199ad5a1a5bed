"""Adversarial networks: the head against its formulas, what each network depends on, its rules."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genjax.config import ConfigError
from genjax.networks import dcgan, gan_mlp, gan_residual
from genjax.networks.gan_head import CONDITIONING, Discriminator, Latent
from genjax.nn.functional import functional
from genjax.parallel.rules import first_match, path_name

RESIDUAL = {"channels": (4, 6), "expansion": 1.5}
SECTIONS = {  # network, its generator's section, its discriminator's
    "mlp": (
        gan_mlp,
        {"widths": (8,), "batch_norm": True},
        {"widths": (8, 6), "pieces": 2, "spectral_norm": True},
    ),
    "dcgan": (dcgan, {"channels": 4}, {"channels": 4}),
    "residual": (gan_residual, RESIDUAL, {**RESIDUAL, "spectral_norm": True}),
}
FLOAT = jnp.float32
LABEL = jnp.array([0, 2, 1, 2])
X = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, size=(4, 8, 8, 3)), FLOAT)
Z = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5)), FLOAT)
KEY = jax.random.key(0)


def jitted(build):
    net = functional(build)
    params, mutable = jax.jit(net.init)(KEY)
    return jax.jit(net.apply, static_argnames="train"), params, mutable


def generator(name, **changes):
    module, section, _ = SECTIONS[name]
    sizes = {"latent_dim": 5, "shape": (8, 8, 3), "num_classes": 3, "dtype": FLOAT}
    return jitted(lambda rngs: module.Generator(rngs=rngs, **sizes, **section, **changes))


def discriminator(name, conditioning="none", packing=1, dtype=FLOAT, resolution=8, **changes):
    module, _, section = SECTIONS[name]

    def build(rngs):
        return Discriminator(
            lambda shape: module.Discriminator(shape, dtype=dtype, rngs=rngs, **section | changes),
            (resolution, resolution, 3),
            conditioning,
            3,
            packing,
            dtype=dtype,
            rngs=rngs,
        )

    return jitted(build)


def random_like(params, scale=0.3):
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda p: p + jnp.asarray(rng.normal(scale=scale, size=p.shape), FLOAT), params
    )


@pytest.fixture(scope="module", params=list(SECTIONS))
def pair(request):
    return request.param, generator(request.param), discriminator(request.param, "projection")


def test_every_parameter_matters_and_images_have_their_range(pair):
    _, (make, gp, gm), (judge, dp, dm) = pair
    gp, dp = random_like(gp), random_like(dp)

    @jax.jit
    def loss(gp, dp):
        images, _ = make(gp, gm, Z, LABEL, train=True)
        (logits, _), _ = judge(dp, dm, images, LABEL, key=KEY, train=True)
        return jnp.vdot(logits, jnp.arange(1.0, 5.0)), (images, logits)

    (_, (images, logits)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(gp, dp)
    assert images.shape == X.shape
    assert logits.shape == (4,)
    assert images.dtype == logits.dtype == FLOAT
    assert np.abs(images).max() <= 1
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(leaf).max() > 0, path_name(path)


def test_rules_cover_parameters_and_state(pair):
    name, (_, gp, gm), (_, dp, dm) = pair
    rules = SECTIONS[name][0].RULES
    leaves = jax.tree_util.tree_leaves_with_path({"params": (gp, dp), "mutable": (gm, dm)})
    assert len(leaves) > 5
    for path, _ in leaves:
        first_match(rules, path_name(path), "sharding")


def test_labels_matter_to_both_players(pair):
    _, (make, gp, gm), (judge, dp, dm) = pair
    for other in ((LABEL + 1) % 3, LABEL.at[0].set(1)):
        images = [make(random_like(gp), gm, Z, y)[0] for y in (LABEL, other)]
        assert np.abs(images[0] - images[1])[0].max() > 1e-4
        logits = [judge(random_like(dp), dm, X, y)[0][0] for y in (LABEL, other)]
        assert np.abs(logits[0] - logits[1])[0] > 1e-4
    with pytest.raises(ValueError, match="labels"):
        make(gp, gm, Z)
    with pytest.raises(ValueError, match="needs labels"):
        judge(dp, dm, X)


def test_state_changes_in_training_only(pair):
    name, (make, gp, gm), (judge, dp, dm) = pair
    for apply, params, state, args in ((make, gp, gm, (Z,)), (judge, dp, dm, (X,))):
        _, trained = apply(params, state, *args, LABEL, key=KEY, train=True)
        _, kept = apply(params, state, *args, LABEL)
        pairs = zip(jax.tree.leaves(state), jax.tree.leaves(kept), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
        pairs = zip(jax.tree.leaves(state), jax.tree.leaves(trained), strict=True)
        assert all(not np.array_equal(a, b) for a, b in pairs), name


class Features(nnx.Module):
    """A body whose features are the means of the channels."""

    def __init__(self, shape):
        self.features, self.init = shape[-1], jax.nn.initializers.normal(1.0)

    def __call__(self, x, *, key, train):
        return x.mean(tuple(range(1, x.ndim - 1)))


def headed(conditioning, packing=1):
    return jitted(
        lambda rngs: Discriminator(Features, (8, 8, 3), conditioning, 3, packing, rngs=rngs)
    )


def test_the_head_is_its_formula():
    means = np.asarray(X, np.float64).mean((1, 2))
    for conditioning in CONDITIONING:
        apply, params, mutable = headed(conditioning)
        params = random_like(params)
        (logits, classes), _ = apply(params, mutable, X, LABEL)
        head = jax.tree.map(lambda p: np.asarray(p, np.float64), params["head"])
        one_hot = np.eye(3)[np.asarray(LABEL)]
        features = np.concatenate([means, one_hot], 1) if conditioning == "concatenation" else means
        expected = (features @ head["linear"]["kernel"] + head["linear"]["bias"])[:, 0]
        if conditioning == "projection":
            expected += (one_hot @ head["projection"]["kernel"] * features).sum(1)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        if conditioning == "auxiliary":
            expected = features @ head["auxiliary"]["kernel"] + head["auxiliary"]["bias"]
            np.testing.assert_allclose(classes, expected, atol=1e-5)
        else:
            assert classes is None


@pytest.mark.parametrize("x", [X, X[:, 0, 0]], ids=["images", "points"])
def test_packing_folds_consecutive_examples_into_channels(x):
    apply, params, mutable = headed("concatenation", 2)
    (logits, _), _ = apply(params, mutable, x, LABEL)
    means = np.asarray(x).reshape(4, -1, 3).mean(1)
    features = np.concatenate([means, np.eye(3)[np.asarray(LABEL)]], 1).reshape(2, 12)
    kernel = np.asarray(params["head"]["linear"]["kernel"])
    np.testing.assert_allclose(logits, (features @ kernel)[:, 0], atol=1e-5)
    with pytest.raises(ValueError, match="packs of 2"):
        apply(params, mutable, x[:3], LABEL[:3])


def test_a_label_without_classes_is_refused():
    with pytest.raises(ValueError, match="if and only if"):
        Latent(4, 0, rngs=nnx.Rngs(0))(Z, LABEL)


@pytest.mark.parametrize("norm", ["layer", "group", "none", "batch"])
def test_only_batch_norm_lets_examples_see_each_other(norm):
    apply, params, mutable = discriminator("dcgan", norm=norm, resolution=16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), FLOAT)
    gradient = jax.grad(lambda x: apply(params, mutable, x, train=True)[0][0][0])(x)
    assert np.abs(gradient[0]).max() > 0
    assert (np.abs(gradient[1:]).max() > 0) == (norm == "batch")


def test_dropout_acts_in_training_only_and_by_key():
    apply, params, mutable = discriminator("mlp")
    params = random_like(params)
    a, b, c = (
        apply(params, mutable, X, key=jax.random.key(s), train=True)[0][0] for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    plain = [apply(params, mutable, X, key=jax.random.key(s))[0][0] for s in (0, 1)]
    np.testing.assert_array_equal(*plain)


def test_points_of_a_plane():
    """The networks of PacGAN's toy experiments: linear output, inputs without height and width."""
    net, params, mutable = jitted(
        lambda rngs: gan_mlp.Generator(5, (2,), widths=(7,), output="linear", rngs=rngs)
    )
    points, _ = net(jax.tree.map(lambda p: 100 * p, params), mutable, Z)
    assert points.shape == (4, 2)
    assert np.abs(points).max() > 1
    body = partial(
        gan_mlp.Discriminator, widths=(6, 5), dropout=0.0, input_dropout=0.0, rngs=nnx.Rngs(0)
    )
    judge = Discriminator(body, (2,), packing=2, rngs=nnx.Rngs(1))
    assert judge(points, train=True)[0].shape == (2,)
    with pytest.raises(ConfigError, match="Nearest: linear"):
        gan_mlp.Generator(5, (2,), output="liner", rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("size", "count"), [(28, 2), (32, 3), (64, 4), (8, 1), (48, 3), (20, 2)])
def test_halvings(size, count):
    assert dcgan.halvings((size, size, 1)) == count


@pytest.mark.parametrize("size", [7, 4, 27, 30, 36])
def test_sizes_that_cannot_be_halved_are_refused(size):
    with pytest.raises(ConfigError, match=f"{size} x {size}"):
        dcgan.halvings((size, size, 3))


def test_rectangles_are_refused():
    with pytest.raises(ConfigError, match="images of 8 x 16"):
        dcgan.halvings((8, 16, 1))


def test_wrong_sections_are_refused():
    with pytest.raises(ConfigError, match="Nearest: batch"):
        discriminator("dcgan", norm="bach")
    with pytest.raises(ConfigError, match="multiple of 16"):
        discriminator("residual", channels=(2, 2, 2, 2, 2))
    with pytest.raises(ConfigError, match="one width per level"):
        discriminator("residual", channels=())


def test_residual_networks_start_as_their_shortcuts():
    """Fix-up: every block's last kernel is zero, so deeper networks begin as shallow ones."""
    x = np.asarray(X, np.float64)
    apply, params, mutable = discriminator("residual", spectral_norm=False)
    body = jax.tree.map(lambda p: np.asarray(p, np.float64), params["body"])
    h = x @ body["stem"]["kernel"][0, 0]
    h = h.reshape(4, 4, 2, 4, 2, 4).mean((2, 4)) @ body["levels"]["changes"]["0"]["kernel"][0, 0]
    features = (h * body["basis"]).sum((1, 2))
    expected = features @ np.asarray(params["head"]["linear"]["kernel"], np.float64)
    np.testing.assert_allclose(apply(params, mutable, X)[0][0], expected[:, 0], atol=1e-4)


def test_resampling_is_bilinear():
    up = jax.image.resize(X, (4, 16, 16, 3), "bilinear")
    np.testing.assert_allclose(gan_residual.upsample(X), up, atol=1e-6)
    down = jax.image.resize(X, (4, 4, 4, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(gan_residual.downsample(X), down, atol=1e-6)


def test_bfloat16_compute_is_close():
    apply, params, mutable = discriminator("dcgan", norm="none")
    low, _, _ = discriminator("dcgan", norm="none", dtype=jnp.bfloat16)
    (exact, _), (rough, _) = apply(params, mutable, X)[0], low(params, mutable, X)[0]
    assert rough.dtype == FLOAT
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max() + 1e-3
