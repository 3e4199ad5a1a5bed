"""VAE losses against a Gaussian model whose evidence is known, and against probabilistic PCA."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from genjax import config as configs
from genjax.config import ConfigError
from genjax.method import DataSpec
from genjax.methods import vae
from genjax.nn.functional import Functional

KEY = jax.random.key(0)
GAIN, NOISE = 1.5, 0.7  # x = GAIN z + noise: evidence N(0, GAIN^2 + NOISE^2)
EVIDENCE = math.hypot(GAIN, NOISE)
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 1)) * EVIDENCE, jnp.float32)
FLOATS = DataSpec("toy", "image", {"image": jax.ShapeDtypeStruct((1,), jnp.float32)}, {})


def inverse_bound(value):
    """What a network must say for the bounded log scale to be `value`."""
    return vae.LIMIT * np.arctanh(value / vae.LIMIT)


def toy(shift=0.0, stretch=1.0, **options):
    """The model above with its exact posterior, moved by `shift` and widened by `stretch`."""
    precision = 1 + (GAIN / NOISE) ** 2
    scale = stretch / math.sqrt(precision)
    start = {
        "slope": GAIN / NOISE**2 / precision,
        "shift": shift,
        "raw": inverse_bound(np.log(scale)),
    }

    def encode(p, mutable, x, label, key=None, train=False):
        return (p["slope"] * x + p["shift"], jnp.broadcast_to(p["raw"], x.shape)), mutable

    def decode(p, mutable, z, label, key=None, train=False):
        return p["gain"] * z, mutable

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
    plain, double = (gradients(b, 20_000, shift=0.3, stretch=1.8) for b in ("iwae", "dreg"))
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


def test_a_linear_vae_is_probabilistic_pca():
    """Lucas et al. 2019: its best ELBO is the best likelihood of pPCA, that of sklearn's PCA."""
    x = (load_digits().data / 8 - 1).astype(np.float32)
    latent = 6
    config = configs.base()
    with config.unlocked():
        config.vae = {"latent_dim": latent, "likelihood": "gaussian"}
        linear = {"widths": (), "activation": "none"}
        config.model = ConfigDict({"network": "vae_mlp", "encoder": linear, "decoder": linear})
    spec = DataSpec("digits", "image", {"image": jax.ShapeDtypeStruct((64,), np.float32)}, {})
    method = vae.build(config, spec)
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


BYTES = DataSpec("toy", "image", {"image": jax.ShapeDtypeStruct((8, 8, 1), np.uint8)}, {}, 3)


@pytest.mark.parametrize(
    ("keys", "spec", "says"),
    [
        ({"bound": "elbow"}, BYTES, r"vae\.bound='elbow'.*Nearest: elbo"),
        ({"likelihood": "normal"}, BYTES, r"expected one of bernoulli"),
        ({"samples": 0}, BYTES, r"samples=0: expected at least 1"),
        ({"bound": "iwae", "beta": 4.0}, BYTES, r"no KL of its own"),
        ({"eval_samples": 120}, BYTES, r"a multiple of vae\.eval_chunk=50"),
        ({"class_conditional": True}, FLOATS, r"toy has no labels"),
        ({}, FLOATS, r"one of 8-bit images.*float32"),
    ],
)
def test_options_that_are_refused(keys, spec, says):
    with pytest.raises(ConfigError, match=says):
        vae.options_from_config(ConfigDict(keys), spec)
