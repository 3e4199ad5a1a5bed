"""VQ-VAE: what its loss, its codebooks and its tokens are, by hand on small arrays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from ml_collections import ConfigDict
from specs import images

from genjax import config as configs
from genjax.config import ConfigError
from genjax.methods import vqvae
from genjax.networks import vq_conv
from genjax.nn import quantize
from genjax.nn.functional import Functional
from genjax.parallel.mesh import global_batch
from genjax.training.assemble import assemble

KEY = jax.random.key(0)
SPEC = images((4, 4, 2))
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 4, 4, 2), np.uint8))
X = np.asarray(IMAGES, np.float64) / 127.5 - 1
ONE = Functional(lambda key: ({"w": jnp.float32(1.0)}, {}), lambda p, m, x, **k: (p["w"] * x, m))


def toy(**options):
    """Encoder and decoder multiply by one: the pixels of two channels are the vectors."""
    options = {"codes": 5, "code_dim": 2, "kmeans": 0, "restart_below": 0.0} | options
    method = vqvae.from_networks(ONE, ONE, vqvae.Options(**options), SPEC, ())
    params, mutable = method.init(KEY, {})
    return method, params, mutable


def nearest(x, codes):
    return np.square(x[..., None, :] - codes).sum(-1).argmin(-1)


@pytest.mark.parametrize("learn", ["ema", "loss"])
def test_the_loss_is_reconstruction_and_commitment(learn):
    method, params, mutable = toy(learn=learn, commitment=0.3, gradient="straight_through")
    own = mutable["autoencoder"] if learn == "ema" else params["autoencoder"]
    codes = np.asarray(own["books"]["0"]["codes"] if learn == "ema" else own["codes"][0])
    index = nearest(X, codes)
    error = np.square(X - codes[index]).mean()
    (value, aux), slope = jax.value_and_grad(method.phases[0].loss, has_aux=True)(
        params, mutable, {"image": IMAGES}, KEY, 0
    )
    assert float(value) == pytest.approx(error * (1.3 if learn == "ema" else 2.3), rel=1e-5)
    assert float(aux.metrics["mse"]) == pytest.approx(error, rel=1e-5)
    shares = np.bincount(index.reshape(-1), minlength=5) / index.size
    entropy = -sum(s * np.log(s) for s in shares if s)
    assert float(aux.metrics["code_perplexity"]) == pytest.approx(np.exp(entropy), rel=1e-5)
    assert float(aux.metrics["code_usage"]) == pytest.approx((shares > 0).mean())
    # Straight through: d/dw of the decoder's w q and, with the same gradient, of q = w x.
    gap = 2 * (codes[index] - X)
    through, committed = (gap * X).mean(), 0.3 * (2 * (X - codes[index]) * X).mean()
    slope = slope["autoencoder"]
    assert float(slope["decoder"]["w"]) == pytest.approx((gap * codes[index]).mean(), rel=1e-4)
    assert float(slope["encoder"]["w"]) == pytest.approx(through + committed, rel=1e-4)
    if learn == "loss":  # the codebook descends its distance and is not moved by the pixels
        expected = np.zeros((5, 2))
        np.add.at(expected, index.reshape(-1), (gap / X.size).reshape(-1, 2))
        np.testing.assert_allclose(slope["codes"][0], expected, atol=1e-6)


def test_codebooks_by_averages_move_in_training_and_nowhere_else():
    method, params, mutable = toy(decay=0.9)
    _, aux = method.phases[0].loss(params, mutable, {"image": IMAGES}, KEY, 0)
    book, moved = (m["autoencoder"]["books"]["0"] for m in (mutable, aux.mutable))
    index = nearest(X, np.asarray(book["codes"])).reshape(-1)
    rows = jnp.asarray(X.reshape(-1, 2), jnp.float32)
    expected = quantize.ema_update(book, rows, jnp.asarray(index), 0.9)
    np.testing.assert_allclose(moved["codes"], expected["codes"], rtol=1e-5, atol=1e-6)
    found = method.evaluate(params, mutable, {"image": IMAGES}, KEY)
    made = np.clip(np.asarray(book["codes"])[index].reshape(X.shape), -1, 1)
    error = np.square(X - np.round((made + 1) * 127.5) / 127.5 + 1).mean((1, 2, 3))
    np.testing.assert_allclose(found["mse"], error, rtol=1e-4)


def test_the_second_codebook_follows_what_the_first_leaves():
    method, params, mutable = toy(depth=2, decay=0.9)
    _, aux = method.phases[0].loss(params, mutable, {"image": IMAGES}, KEY, 0)
    rest = X.reshape(-1, 2)
    for q in range(2):
        book, moved = (m["autoencoder"]["books"][str(q)] for m in (mutable, aux.mutable))
        codes = np.asarray(book["codes"], np.float64)
        index = nearest(rest, codes)
        counts = 0.9 * np.asarray(book["counts"]) + 0.1 * np.bincount(index, minlength=5)
        sums = 0.9 * np.asarray(book["sums"], np.float64)
        np.add.at(sums, index, 0.1 * rest)
        np.testing.assert_allclose(moved["counts"], counts, rtol=1e-5)
        before, after = (m["autoencoder"]["shares"][q] for m in (mutable, aux.mutable))
        shares = np.bincount(index, minlength=5) / len(index)
        np.testing.assert_allclose(after, 0.9 * before + 0.1 * shares, rtol=1e-5)
        np.testing.assert_allclose(moved["sums"], sums, rtol=1e-4, atol=1e-5)
        rest = rest - codes[index]


def test_the_default_gradient_is_rotated_and_scaled():
    """Fifty et al. 2024, section 4: what turns x into its code q turns x's own gradient alike."""
    method, params, mutable = toy(commitment=0.0)
    assert vqvae.Options().gradient == "rotation"
    codes = np.asarray(mutable["autoencoder"]["books"]["0"]["codes"])
    chosen = codes[nearest(X, codes)]
    slope = jax.grad(lambda p: method.phases[0].loss(p, mutable, {"image": IMAGES}, KEY, 0)[0])
    found = float(slope(params)["autoencoder"]["encoder"]["w"])
    gap = 2 * (chosen - X)
    assert found == pytest.approx((gap * chosen).mean(), rel=1e-4)
    assert abs(found - (gap * X).mean()) > 0.01 * abs(found)


@pytest.mark.parametrize("level", [0, 1])
def test_a_code_that_nothing_is_near_begins_anew_on_a_vector_of_the_batch(level):
    """Of the second codebook on what the first one leaves of it."""
    name = str(level)

    def moved(restart_below):
        method, params, mutable = toy(restart_below=restart_below, depth=2)
        books = mutable["autoencoder"]["books"]
        book = books[name]
        far = {"codes": book["codes"].at[3].set(50.0), "sums": book["sums"].at[3].set(5.0)}
        book = {**book, **far, "counts": book["counts"].at[3].set(0.1)}
        own = {**mutable["autoencoder"], "books": {**books, name: book}}
        _, aux = method.phases[0].loss(params, {"autoencoder": own}, {"image": IMAGES}, KEY, 0)
        return np.asarray(aux.mutable["autoencoder"]["books"][name]["codes"])

    rest = X.reshape(-1, 2)
    if level:
        codes = np.asarray(toy(depth=2)[2]["autoencoder"]["books"]["0"]["codes"])
        rest = rest - codes[nearest(rest, codes)]
    on, off = moved(0.2), moved(0.0)
    assert np.abs(rest - on[3]).max(1).min() < 1e-6
    assert off[3].min() > 10
    others = [0, 1, 2, 4]
    np.testing.assert_array_equal(on[others], off[others])


def test_the_alarm_rings_when_all_is_one_code_of_however_few():
    for codes in (2, 16, 512):
        (alarm,) = toy(codes=codes)[0].alarms
        assert 1 < alarm.below < codes


def test_a_residual_block_begins_with_its_input():
    block = vq_conv.ResidualBlock(4, 2, jnp.float32, nnx.Rngs(0))
    x = jax.random.normal(KEY, (2, 4, 4, 4))
    block.conv2.kernel[...] = jnp.zeros_like(block.conv2.kernel[...])
    np.testing.assert_allclose(block(x), x + block.conv2.bias[...], rtol=1e-6)


def test_kmeans_makes_the_first_codebook_and_no_later_one():
    method, params, mutable = toy(kmeans=8, decay=0.999)
    step = jax.jit(lambda m: method.phases[0].loss(params, m, {"image": IMAGES}, KEY, 0))
    _, first = step(mutable)
    start = mutable["autoencoder"]["books"]["0"]["codes"]
    book = first.mutable["autoencoder"]["books"]["0"]["codes"]
    assert float(first.metrics["mse"]) < np.square(X - np.asarray(start)[nearest(X, start)]).mean()
    assert bool(first.mutable["autoencoder"]["ready"])
    _, second = step({"autoencoder": first.mutable["autoencoder"]})
    later = second.mutable["autoencoder"]["books"]["0"]["codes"]
    assert 0 < np.abs(later - book).max() < 0.01


def test_each_codebook_takes_what_the_ones_before_leave():
    method, params, mutable = toy(depth=3)
    model = method.phases[0].loss.args[0]
    books = [np.asarray(mutable["autoencoder"]["books"][str(q)]["codes"]) for q in range(3)]
    index = np.asarray(vqvae.encode(model, params, mutable, {"image": IMAGES}))
    rest, total = X, 0.0
    for q, codes in enumerate(books):
        np.testing.assert_array_equal(index[..., q], nearest(rest, codes))
        rest, total = rest - codes[index[..., q]], total + codes[index[..., q]]
    made = np.asarray(vqvae.decode(model, params, mutable, jnp.asarray(index)), np.float64)
    np.testing.assert_allclose(made, np.clip(np.round((total + 1) * 127.5), 0, 255), atol=1)


def test_each_codebook_that_learns_by_loss_is_drawn_to_what_is_left():
    method, params, mutable = toy(depth=2, learn="loss", commitment=0.0)
    slope = jax.grad(lambda p: method.phases[0].loss(p, mutable, {"image": IMAGES}, KEY, 0)[0])(
        params
    )["autoencoder"]["codes"]
    rest = X
    for q, codes in enumerate(np.asarray(params["autoencoder"]["codes"])):
        index, expected = nearest(rest, codes), np.zeros((5, 2))
        gap = 2 * (codes[index] - rest) / X.size
        np.add.at(expected, index.reshape(-1), gap.reshape(-1, 2))
        np.testing.assert_allclose(slope[q], expected, atol=1e-6)
        rest = rest - codes[index]


def test_eight_devices_are_one():
    """Also k-means, averages and codes that begin anew, over two steps."""
    overrides = {
        "batch_size": 16,
        "evals.batch_size": 16,
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.0,
        "vqvae.restart_below": 1.0,
        "vqvae.depth": 2,
        "vqvae.codes": 8,
        "vqvae.kmeans": 2,
        "model.encoder.channels": 4,
        "model.decoder.channels": 4,
    }
    config = configs.load("configs/vqvae.py:tiny", overrides)
    image = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)
    label, states = np.zeros(16, np.int32), []
    for devices in (jax.devices()[:1], jax.devices()):
        run = assemble(config, devices=devices)
        with jax.set_mesh(run.mesh):
            state = run.init()
            start = jax.device_get(state.mutable["autoencoder"]["books"]["1"]["codes"])
            batch = global_batch({"image": image, "label": label}, run.mesh)
            for _ in range(2):
                state, _ = run.step(state, batch)
            states.append(jax.device_get((dict(state.params), dict(state.mutable))))
    chex.assert_trees_all_close(*states, rtol=1e-3, atol=1e-5)
    assert np.abs(states[0][1]["autoencoder"]["books"]["1"]["codes"] - start).max() > 0.1


def test_finite_scalars_have_tokens_that_decode_to_what_was_rounded():
    method, params, mutable = toy(quantizer="fsq", levels=(5, 4))
    model = method.phases[0].loss.args[0]
    index = vqvae.encode(model, params, mutable, {"image": IMAGES})
    assert index.shape == (6, 4, 4, 1)
    expected = quantize.fsq(jnp.asarray(X, jnp.float32), (5, 4))
    made = vqvae.decode(model, params, mutable, index)
    np.testing.assert_allclose(made, np.clip(np.round((expected + 1) * 127.5), 0, 255), atol=1)
    samples = method.sample(params, mutable, KEY, 3, {})
    assert samples.shape == (3, 4, 4, 2)
    assert samples.dtype == jnp.uint8


DARK = IMAGES.at[:, :2].set(0)  # half of the pixels are in a bin that reaches to infinity


def reconstructed(mutable, depth):
    """What the toy makes of DARK, and that in [-1, 1], in float64."""
    books = jax.device_get(mutable["autoencoder"]["books"])
    x = np.asarray(DARK, np.float64) / 127.5 - 1
    rest, made = x, 0.0
    for q in range(depth):
        chosen = books[str(q)]["codes"][nearest(rest, books[str(q)]["codes"])]
        rest, made = rest - chosen, made + chosen
    return made, x


def log_likelihood(x, made, scale):
    upper, lower = (scipy.stats.norm.cdf((x + s / 255 - made) / scale) for s in (1, -1))
    upper, lower = np.where(x > 0.999, 1, upper), np.where(x < -0.999, 0, lower)
    return np.log(upper - lower).sum((1, 2, 3))


def test_the_bound_has_a_uniform_prior_and_a_gaussian():
    """The likelihood in float64 by the normal distribution's function."""
    method, params, mutable = toy(depth=2)
    made, x = reconstructed(mutable, 2)
    model = method.phases[0].loss.args[0]
    index = vqvae.encode(model, params, mutable, {"image": DARK})
    for scale in (1.0, 0.6):
        mutable["autoencoder"]["log_scale"] = jnp.log(scale)
        exact = log_likelihood(x, made, scale)
        kl = 4 * 4 * 2 * np.log(5)
        found = method.evaluate(params, mutable, {"image": DARK}, KEY)
        np.testing.assert_allclose(found["kl"], kl, rtol=1e-6)
        np.testing.assert_allclose(found["reconstruction"], exact, rtol=1e-4)
        np.testing.assert_allclose(found["elbo"], exact - kl, rtol=1e-4)
        np.testing.assert_allclose(found["bits_per_dim"], (kl - exact) / 32 / np.log(2), rtol=1e-4)
        alone = method.codec.log_likelihood(params, mutable, {"image": DARK}, index)
        np.testing.assert_allclose(alone, exact, rtol=1e-4)


def test_the_scale_goes_to_where_the_training_images_are_likeliest():
    """Which is not the error's: that of the pixels in the first bin says less than the others'."""
    method, params, mutable = toy(decay=0.9)
    made, x = reconstructed(mutable, 1)
    found = scipy.optimize.minimize_scalar(
        lambda s: -log_likelihood(x, made, np.exp(s)).sum(), bounds=(-4, 2), method="bounded"
    )
    assert abs(found.x - 0.5 * np.log(np.square(x - made).mean())) > 0.02
    loss = jax.jit(method.phases[0].loss)
    own = mutable["autoencoder"]
    for first in (-2.5, 2.5):
        scale = jnp.float32(first)
        for step in range(150):
            kept = {"autoencoder": {**own, "log_scale": scale}}
            _, aux = loss(params, kept, {"image": DARK}, KEY, 0)
            new = aux.mutable["autoencoder"]["log_scale"]
            assert step > 5 or 0.02 < abs(new - scale) < 0.1001  # by 1 - decay and no more
            scale = new
        assert float(scale) == pytest.approx(found.x, abs=1e-3)


def test_the_bound_of_perfect_reconstructions_is_finite():
    method, params, mutable = toy()
    own = {**mutable["autoencoder"], "log_scale": jnp.float32(-13.8)}
    codes = own["books"]["0"]["codes"]
    image = jnp.full((1, 4, 4, 2), 255, jnp.uint8)
    found = []
    for code in (1.0, -1.0):  # each pixel as it is, and as far off as can be
        books = {"0": {**own["books"]["0"], "codes": jnp.full_like(codes, code)}}
        kept = {"autoencoder": {**own, "books": books}}
        found.append(
            float(method.evaluate(params, kept, {"image": image}, KEY)["reconstruction"][0])
        )
    assert found[0] == pytest.approx(0, abs=1e-6)  # the probability of what is certain is one
    assert -np.inf < found[1] < -1e6


def test_codes_by_kmeans_are_their_cells_means_and_count_them():
    """Of the second codebook too: its cells are of what the first one leaves."""
    method, params, mutable = toy(kmeans=30, codes=3, depth=2, decay=0.999, restart_below=1.5)
    _, aux = method.phases[0].loss(params, mutable, {"image": IMAGES}, KEY, 0)
    rest = X.reshape(-1, 2)
    for q in range(2):
        book = aux.mutable["autoencoder"]["books"][str(q)]
        codes = np.asarray(book["codes"], np.float64)
        index = nearest(rest, codes)
        sizes = np.bincount(index, minlength=3)
        assert sizes.min() > 2  # or a threshold above one would throw codes away at once
        np.testing.assert_allclose(book["counts"], sizes, rtol=0.02)
        means = [rest[index == k].mean(0) for k in range(3)]
        np.testing.assert_allclose(codes, means, atol=2e-3)
        rest = rest - codes[index]


def test_samples_are_of_codes_by_their_shares():
    """Position by position and codebook by codebook; a code without a share never comes."""
    method, params, mutable = toy(depth=2, codes=3)
    own = mutable["autoencoder"]
    codes = np.array([[[-0.8, 0.0], [0.0, 0.8], [9.0, 9.0]], [[0.1, 0.1], [9.0, 9.0], [-0.2, 0.2]]])
    own["books"] = {str(q): quantize.codebook(jnp.float32(codes[q])) for q in range(2)}
    own["shares"] = jnp.array([[0.3, 0.1, 0.0], [0.2, 0.0, 0.6]])
    made = jax.jit(method.sample, static_argnums=3)(params, mutable, KEY, 500)
    values = np.asarray(made, np.float64).reshape(-1, 2) / 127.5 - 1
    for first, p in ((0, 0.75), (1, 0.25)):
        for second, q in ((0, 0.25), (2, 0.75)):
            at = np.abs(values - codes[0, first] - codes[1, second]).max(1) < 0.01
            assert at.mean() == pytest.approx(p * q, abs=0.02)


def test_labels_are_refused():
    method, params, mutable = toy()
    with pytest.raises(ConfigError, match="the model has no such condition: leave it out"):
        method.sample(params, mutable, KEY, 2, {"label": jnp.array([0, 1])})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"quantizer": "vg"}, r"vqvae\.quantizer='vg'.*Nearest: vq"),
        ({"gradient": "ste"}, r"expected one of straight_through, rotation"),
        ({"codes": 1}, r"codes=1: expected at least 2"),
        (
            {"codes": 2**19, "depth": 3},
            r"codes \* vqvae\.depth=1572864: expected at most 1,048,576",
        ),
        ({"decay": 1.0}, r"decay=1\.0: expected above 0 and below 1"),
        ({"levels": (5, 2)}, r"expected at least 3 and at most 1,000 each"),
        ({"levels": ()}, r"levels=\(\): expected one or more"),
        ({"levels": (1000, 1000, 3)}, r"at most 1,048,576 codes"),
        ({"levels": (1002, 3)}, r"expected at least 3 and at most 1,000 each"),
        ({"commitment": float("inf")}, r"finite in float32"),
        (
            {"quantizer": "fsq", "depth": 2, "codes": 64},
            r"codes=64, vqvae\.depth=2: no effect with vqvae\.quantizer='fsq'\. Set "
            r"vqvae\.codes=512, vqvae\.depth=1, or",
        ),
        ({"levels": (5, 5)}, r"levels=\(5, 5\): no effect with vqvae\.quantizer='vq'"),
        ({"learn": "loss", "kmeans": 3}, r"kmeans=3: no effect with vqvae\.learn='loss'"),
    ],
)
def test_options_that_are_refused(keys, says):
    with pytest.raises(ConfigError, match=says):
        vqvae.options_from_config(ConfigDict(keys))


def test_what_is_of_no_effect_may_be_off():
    given = {"learn": "loss", "kmeans": 0, "restart_below": 0.0, "levels": [8, 5, 5, 5]}
    found = vqvae.options_from_config(ConfigDict(given))
    assert found.learn == "loss"
    assert found.levels == (8, 5, 5, 5)
    vqvae.options_from_config(ConfigDict({"quantizer": "fsq", "commitment": 0.0}))


@pytest.mark.parametrize(
    ("keys", "size", "says"),
    [
        (
            {"model.encoder.halvings": 2},
            8,
            r"of shape \(8, 8, 1\) are decoded to shape \(4, 4, 1\)",
        ),
        ({"model.encoder.halvings": -1}, 8, r"halvings=-1: expected at least 0"),
        ({"model.decoder.halvings": -1}, 8, r"decoder\.halvings=-1: expected at least 0"),
        ({"model.decoder.channels": 0}, 8, r"decoder\.channels=0: expected .*at least 2"),
        ({}, 9, r"model\.encoder\.halvings: images of 9 x 9 cannot be halved 1 times"),
    ],
)
def test_networks_that_do_not_fit_are_refused(keys, size, says):
    config = configs.load("configs/vqvae.py:tiny", keys)
    with pytest.raises(ConfigError, match=says):
        vqvae.build(config, images((size, size, 1), train=64))


def test_the_lowest_code_perplexity_is_of_the_worst_codebook():
    method, params, mutable = toy(depth=2, codes=4)
    shares = jnp.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    mutable["autoencoder"]["shares"] = shares
    found = method.evaluate(params, mutable, {"image": IMAGES}, KEY)
    np.testing.assert_allclose(found["code_perplexity"], 2.5, rtol=1e-5)
    np.testing.assert_allclose(found["lowest_code_perplexity"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(found["code_usage"], 5 / 8, rtol=1e-5)
    assert method.alarms[0].metric == "eval/lowest_code_perplexity"
