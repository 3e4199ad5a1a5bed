"""VAE losses against a Gaussian model whose evidence is known, and against probabilistic PCA."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from scipy import integrate, special, stats
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from specs import images

from genjax import config as configs
from genjax.config import ConfigError
from genjax.methods import vae
from genjax.nn.functional import Functional

KEY = jax.random.key(0)
GAIN, NOISE = 1.5, 0.7  # x = GAIN z + noise: evidence N(0, GAIN^2 + NOISE^2)
EVIDENCE = math.hypot(GAIN, NOISE)
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 1)) * EVIDENCE, jnp.float32)
FLOATS = images((1,), np.float32, classes=3)


def inverse_bound(value):
    """What a network must say for the bounded log scale to be `value`."""
    return vae.LIMIT * np.arctanh(value / vae.LIMIT)


def toy(shift=0.0, stretch=1.0, **options):
    """The model above with its exact posterior, moved by `shift` and widened by `stretch`.

    A label adds twice itself to x.
    """
    precision = 1 + (GAIN / NOISE) ** 2
    scale = stretch / math.sqrt(precision)
    start = {
        "slope": GAIN / NOISE**2 / precision,
        "shift": shift,
        "raw": inverse_bound(np.log(scale)),
    }

    def offset(label):
        return 0.0 if label is None else 2.0 * label[:, None]

    def encode(p, mutable, x, label, key=None, train=False):
        mean = p["slope"] * (x - offset(label)) + p["shift"]
        return (mean, jnp.broadcast_to(p["raw"], x.shape)), mutable

    def decode(p, mutable, z, label, key=None, train=False):
        return p["gain"] * z + offset(label), mutable

    method = vae.from_networks(
        Functional(lambda key: (jax.tree.map(jnp.float32, start), {}), encode),
        Functional(lambda key: ({"gain": jnp.float32(GAIN)}, {}), decode),
        vae.Options(latent_dim=1, likelihood="gaussian", **options),
        FLOATS,
        (),
    )
    params, mutable = method.init(KEY, {})
    params["vae"]["log_scale"] = jnp.float32(inverse_bound(np.log(NOISE)))
    return method, params, mutable


def log_evidence(x):
    return stats.norm.logpdf(np.asarray(x, np.float64)[:, 0], 0, EVIDENCE)


@pytest.mark.parametrize("k", [1, 7])
def test_the_exact_posterior_makes_the_bounds_tight(k):
    method, params, mutable = toy(eval_samples=max(k, 2), eval_chunk=1, samples=k, bound="iwae")
    found = method.evaluate(params, mutable, {"image": X}, KEY)
    np.testing.assert_allclose(found["log_likelihood"], log_evidence(X), atol=2e-5)
    value, aux = method.phases[0].loss(params, mutable, {"image": X}, KEY, 0)
    np.testing.assert_allclose(value, -log_evidence(X).mean(), atol=2e-5)
    assert aux.weight == len(X)


def test_the_bound_grows_with_k_up_to_the_evidence():
    """Burda et al. 2016, theorem 1, on average over 4,000 draws of each."""
    bounds, errors = [], []
    for k in (1, 5, 50):
        method, params, mutable = toy(shift=0.4, stretch=1.6, samples=k, bound="iwae")
        values = jax.jit(
            jax.vmap(
                lambda key, loss=method.phases[0].loss, p=params, m=mutable: (
                    -loss(p, m, {"image": X}, key, 0)[0]
                )
            )
        )(jax.random.split(KEY, 4000))
        bounds.append(float(values.mean()))
        errors.append(float(values.std() / math.sqrt(len(values))))
    evidence = log_evidence(X).mean()
    assert bounds[0] + 3 * errors[0] < bounds[1] - 3 * errors[1]
    assert bounds[1] + 3 * errors[1] < bounds[2] - 3 * errors[2]
    assert bounds[2] < evidence + 3 * errors[2]
    assert evidence - bounds[2] < 0.05 * (evidence - bounds[0])


def test_the_elbo_is_its_closed_form():
    """E log p(x|z) of a Gaussian is that at the mean less the variance it spreads."""
    method, params, mutable = toy(shift=0.4, stretch=1.6, eval_samples=4000, eval_chunk=4000)
    found = method.evaluate(params, mutable, {"image": X}, KEY)
    x, precision = np.asarray(X, np.float64), 1 + (GAIN / NOISE) ** 2
    mean, scale = GAIN / NOISE**2 / precision * x + 0.4, 1.6 / math.sqrt(precision)
    kl = 0.5 * (mean**2 + scale**2 - 1) - math.log(scale)
    reconstruction = stats.norm.logpdf(x, GAIN * mean, NOISE) - (GAIN * scale / NOISE) ** 2 / 2
    np.testing.assert_allclose(found["kl"], kl[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["elbo"], (reconstruction - kl)[:, 0], atol=0.15)
    assert "bits_per_dim" not in found


def gradients(bound, keys, **model):
    method, params, mutable = toy(bound=bound, samples=5, **model)

    def one(key):
        return jax.grad(lambda p: method.phases[0].loss(p, mutable, {"image": X}, key, 0)[0])(
            params
        )

    return jax.jit(jax.vmap(one))(jax.random.split(KEY, keys))["vae"]


def test_the_doubly_reparameterised_gradient():
    """Tucker et al. 2019: the same mean, none at all at the exact posterior, less variance near."""
    exact = gradients("dreg", 3)
    for leaf in jax.tree.leaves(exact["encoder"]):
        np.testing.assert_allclose(leaf, 0, atol=2e-5)
    same_means_less_variance(1.0)


def test_the_doubly_reparameterised_gradient_where_the_kl_weighs_less():
    same_means_less_variance(0.5)


def same_means_less_variance(beta):
    plain, double = (
        gradients(b, 20_000, shift=0.3, stretch=1.8, beta=beta) for b in ("iwae", "dreg")
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        plain["decoder"],
        double["decoder"],
    )
    for name in plain["encoder"]:
        a, b = plain["encoder"][name], double["encoder"][name]
        error = math.sqrt((a.var() + b.var()) / len(a))
        assert abs(a.mean() - b.mean()) < 4 * error, name
        assert abs(a.mean()) > 4 * error, name
        assert b.var() < 0.7 * a.var(), name


def test_beta_warmup_and_free_bits_weigh_the_kl():
    def terms(step, warmup=0, **options):
        method, params, mutable = toy(shift=0.4, **options)
        model = method.phases[0].loss.args[0]._replace(warmup_steps=warmup)
        value, aux = vae.loss(model, params, mutable, {"image": X}, KEY, step)
        return float(value + aux.metrics["reconstruction"]), float(aux.metrics["kl"])

    charged, kl = terms(0)
    assert charged == pytest.approx(kl, rel=1e-5)
    assert terms(0, beta=4.0)[0] == pytest.approx(4 * kl, rel=1e-5)
    assert terms(25, warmup=100, beta=2.0)[0] == pytest.approx(0.5 * kl, rel=1e-5)
    assert terms(300, warmup=100)[0] == pytest.approx(kl, rel=1e-5)
    assert terms(0, free_bits=kl + 2)[0] == pytest.approx(kl + 2, rel=1e-5)


def test_each_sample_is_decoded_with_the_label_of_its_example():
    """By the exact posterior all bounds are the evidence, of whatever samples."""
    method, params, mutable = toy(class_conditional=True, bound="iwae", samples=3, eval_samples=4)
    label = jnp.arange(len(X)) % 3
    batch = {"image": X + 2.0 * label[:, None], "label": label}
    value, _ = method.phases[0].loss(params, mutable, batch, KEY, 0)
    assert -float(value) == pytest.approx(float(log_evidence(X).mean()), rel=1e-5)
    found = method.evaluate(params, mutable, batch, KEY)["log_likelihood"]
    np.testing.assert_allclose(found, log_evidence(X), rtol=1e-5)


def test_the_elbo_reported_is_the_evidence_where_the_posterior_is_exact():
    method, params, mutable = toy(samples=20_000, beta=4.0)
    _, aux = method.phases[0].loss(params, mutable, {"image": X}, KEY, 0)
    assert float(aux.metrics["elbo"]) == pytest.approx(float(log_evidence(X).mean()), abs=0.02)


def test_free_bits_are_of_each_dimension_and_of_the_mean_over_examples():
    """Kingma et al. 2016, eq. 15: one dimension above, one below, single examples on both sides."""
    slopes, scale = np.array([1.2, 0.5]), 0.6

    def encode(p, mutable, x, label, key=None, train=False):
        return (x * slopes, jnp.full((len(x), 2), inverse_bound(math.log(scale)))), mutable

    def decode(p, mutable, z, label, key=None, train=False):
        return z[:, :1], mutable

    nothing = Functional(lambda key: ({}, {}), encode)
    kl = (np.square(np.asarray(X, np.float64) * slopes) + scale**2 - 1) / 2 - math.log(scale)
    free = float(kl.mean(0)[1] + 0.03)
    options = vae.Options(latent_dim=2, likelihood="gaussian", free_bits=free)
    decoder = Functional(lambda key: ({}, {}), decode)
    method = vae.from_networks(nothing, decoder, options, FLOATS, ())
    value, aux = method.phases[0].loss(*method.init(KEY, {}), {"image": X}, KEY, 0)
    means = kl.mean(0)
    assert means[1] < free < means[0]
    assert (kl[:, 0] < free).any()
    assert (kl[:, 1] > free).any()
    charged = float(value + aux.metrics["reconstruction"])
    assert charged == pytest.approx(means[0] + free, rel=1e-5)


@pytest.mark.parametrize("bound", ["iwae", "dreg"])
def test_with_many_samples_beta_tempers_the_ratio_of_prior_and_posterior(bound):
    """log E_q p(x|z) (p(z) / q(z|x))^beta, by quadrature; half way through the warm-up."""
    method, params, mutable = toy(shift=0.4, stretch=1.6, samples=20_000, bound=bound, beta=0.6)
    model = method.phases[0].loss.args[0]._replace(warmup_steps=100)
    precision, expected = 1 + (GAIN / NOISE) ** 2, []
    for x in np.asarray(X, np.float64)[:, 0]:
        q = stats.norm(GAIN / NOISE**2 / precision * x + 0.4, 1.6 / math.sqrt(precision))

        def integrand(z, x=x, q=q):
            ratio = stats.norm.logpdf(z) - q.logpdf(z)
            return np.exp(q.logpdf(z) + stats.norm.logpdf(x, GAIN * z, NOISE) + 0.3 * ratio)

        reach = (q.mean() - 12 * q.std(), q.mean() + 12 * q.std())
        expected.append(math.log(integrate.quad(integrand, *reach, points=[q.mean()])[0]))
    value, aux = vae.loss(model, params, mutable, {"image": X}, KEY, 50)
    assert float(aux.metrics["kl_weight"]) == pytest.approx(0.3)
    assert -float(value) == pytest.approx(np.mean(expected), abs=0.02)
    assert float(aux.metrics["bound"]) == pytest.approx(log_evidence(X).mean(), abs=0.02)


def test_a_linear_vae_is_probabilistic_pca():
    """Lucas et al. 2019: its best ELBO is the best likelihood of pPCA, that of sklearn's PCA."""
    x = (load_digits().data / 8 - 1).astype(np.float32)
    latent = 6
    config = configs.base()
    with config.unlocked():
        config.vae = {"latent_dim": latent, "likelihood": "gaussian"}
        linear = {"widths": (), "activation": "none"}
        config.model = ConfigDict({"network": "vae_mlp", "encoder": linear, "decoder": linear})
    method = vae.build(config, images((64,), np.float32, train=len(x)))
    params, mutable = method.init(KEY, {})
    batch, steps = {"image": jnp.asarray(x)}, 3000
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, steps, 1e-3))

    def step(carry, index):
        params, state = carry
        key = jax.random.fold_in(KEY, index)
        slope = jax.grad(lambda p: method.phases[0].loss(p, mutable, batch, key, index)[0])(params)
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), jnp.arange(steps))[0][0])
    model = (
        method.phases[0]
        .loss.args[0]
        ._replace(options=vae.Options(latent_dim=latent, likelihood="gaussian", eval_samples=400))
    )
    found = jax.jit(lambda p: vae.evaluate(model, p, mutable, batch, KEY))(run(params))
    expected = PCA(latent).fit(x).score(x)
    assert float(found["elbo"].mean()) == pytest.approx(expected, abs=0.05)


def test_the_likelihood_of_many_chunks_reaches_the_evidence():
    """1,000 chunks of five samples from a wrong posterior; chunks that repeat would fall short."""
    method, params, mutable = toy(shift=0.4, stretch=1.6, eval_samples=5000, eval_chunk=5)
    found = jax.jit(method.evaluate)(params, mutable, {"image": X}, KEY)
    np.testing.assert_allclose(found["log_likelihood"], log_evidence(X), atol=0.05)
    method, params, mutable = toy(shift=0.4, stretch=1.6, eval_samples=5, eval_chunk=5)
    few = jax.jit(method.evaluate)(params, mutable, {"image": X}, KEY)
    assert np.abs(few["log_likelihood"] - log_evidence(X)).max() > 0.05


@pytest.mark.parametrize("said", [-1e30, 1e30])
def test_a_scale_without_bounds_cannot_make_nan(said):
    method, params, mutable = toy(bound="iwae", samples=3)
    params["vae"]["encoder"]["raw"] = jnp.float32(said)
    params["vae"]["log_scale"] = jnp.float32(-said)
    loss = method.phases[0].loss
    (value, aux), slope = jax.value_and_grad(loss, has_aux=True)(
        params, mutable, {"image": X}, KEY, 0
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, aux.metrics, slope)))


def says(out, likelihood, shape):
    """A model whose encoder says N(0, 1) and whose decoder says `out`, whatever they are given."""

    def encode(p, mutable, x, label, key=None, train=False):
        return (jnp.zeros((len(x), 2)), jnp.zeros((len(x), 2))), mutable

    def decode(p, mutable, z, label, key=None, train=False):
        return jnp.broadcast_to(jnp.asarray(out, jnp.float32), (len(z), *out.shape)), mutable

    def nothing(key):
        return {}, {}

    return vae.from_networks(
        Functional(nothing, encode),
        Functional(nothing, decode),
        vae.Options(latent_dim=2, likelihood=likelihood, eval_samples=4, eval_chunk=2),
        images(shape),
        (),
    )


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "logistic"])
def test_likelihoods_of_images_are_scipys(likelihood):
    """Summed over pixels and channels, and in bits a dimension."""
    rng, shape = np.random.default_rng(0), (3, 4, 2)
    out = rng.normal(size=shape)
    image = rng.integers(0, 256, (5, *shape)).astype(np.uint8)
    x, scale = image / 127.5 - 1, 0.6
    if likelihood == "bernoulli":
        image = np.where(image > 127, 255, 0).astype(np.uint8)  # nothing is left to be drawn
        expected = stats.bernoulli.logpmf(image // 255, special.expit(out))
        centre = special.expit(out) * 2 - 1
    else:
        log_scale = np.log(scale) if likelihood == "gaussian" else rng.normal(size=shape) - 1
        peer = stats.norm if likelihood == "gaussian" else stats.logistic
        below, above = (peer.cdf(x + side / 255, out, np.exp(log_scale)) for side in (-1, 1))
        share = np.where(image == 255, 1, above) - np.where(image == 0, 0, below)
        expected, centre = np.log(share), np.clip(out, -1, 1)
        if likelihood == "logistic":
            out = np.concatenate([out, inverse_bound(log_scale)], -1)
    expected = expected.sum((1, 2, 3))
    method = says(out, likelihood, shape)
    params, mutable = method.init(KEY, {})
    if likelihood == "gaussian":
        params["vae"]["log_scale"] = jnp.float32(inverse_bound(np.log(scale)))
    found = method.evaluate(params, mutable, {"image": jnp.asarray(image)}, KEY)
    for name in ("elbo", "reconstruction", "log_likelihood"):
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(found["kl"], 0, atol=1e-6)
    bits = -expected / (np.log(2) * math.prod(shape))
    kinds = {"bernoulli": "binary_bits_per_dim"}  # of pixels that are 0 or 1: no code length
    name = kinds.get(likelihood, "bits_per_dim")
    assert [key for key in found if "bits" in key] == [name]
    np.testing.assert_allclose(found[name], bits, rtol=1e-4)
    error = np.square(np.round((centre + 1) * 127.5) / 127.5 - 1 - (image / 127.5 - 1))
    np.testing.assert_allclose(found["mse"], error.mean((1, 2, 3)), rtol=0.02)
    np.testing.assert_allclose(found["psnr"], 10 * np.log10(4 / np.asarray(found["mse"])), 1e-5)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "logistic"])
@pytest.mark.parametrize("said", [-1e36, 1e36])
def test_what_a_decoder_says_cannot_make_nan(likelihood, said):
    """Neither of the parameters of p(x | z), at the widest and the narrowest scale."""
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (5, 3, 4, 2), np.uint8))
    for scale in (-1e36, 1e36):
        mean = np.full((3, 4, 2), said)
        parts = [mean, np.full_like(mean, scale)] if likelihood == "logistic" else [mean]
        method = says(np.concatenate(parts, -1), likelihood, (3, 4, 2))
        params, mutable = method.init(KEY, {})
        if likelihood == "gaussian":
            params["vae"]["log_scale"] = jnp.float32(scale)
        loss = method.phases[0].loss
        (value, aux), slope = jax.value_and_grad(loss, has_aux=True)(
            params, mutable, {"image": image}, KEY, 0
        )
        found = method.evaluate(params, mutable, {"image": image}, KEY)
        for leaf in jax.tree.leaves((value, aux.metrics, slope, found)):
            assert np.isfinite(leaf).all()


def test_pixels_are_binarised_anew_at_each_draw():
    """Burda et al. 2016, section 5; with their brightness for probability."""
    method = says(np.zeros((1, 1, 3)), "bernoulli", (1, 1, 3))
    model = method.phases[0].loss.args[0]
    image = jnp.broadcast_to(jnp.array([0, 64, 255], jnp.uint8), (20_000, 1, 1, 3))
    first, again, other = (
        model.data({"image": image}, jax.random.key(k))[0][:, 0, 0] for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert 0.3 < np.mean(first[:, 1] != other[:, 1]) < 0.45  # 2 p (1 - p)
    np.testing.assert_allclose(first.mean(0), [0, 64 / 255, 1], atol=0.015)


def test_labels_for_a_model_that_knows_none():
    method, params, mutable = toy()
    with pytest.raises(ConfigError, match=r"has no such.*vae\.class_conditional=True"):
        method.sample(params, mutable, KEY, 2, {"label": jnp.array([0, 1])})


def test_the_code_of_an_example_is_the_posteriors_mean():
    method, params, mutable = toy()
    codec = method.codec
    code = codec.encode(params, mutable, {"image": X})
    np.testing.assert_allclose(code, X * GAIN / (GAIN**2 + NOISE**2), rtol=1e-5)
    np.testing.assert_allclose(codec.decode(params, mutable, code), GAIN * code, rtol=1e-6)
    assert toy(class_conditional=True)[0].codec is None  # it is given no labels
