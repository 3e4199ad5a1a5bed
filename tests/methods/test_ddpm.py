"""DDPM's loss, guidance and sampling against the papers' formulas; what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats
from specs import images

from genjax.config import ConfigError
from genjax.method import Field
from genjax.methods import ddpm
from genjax.nn.functional import Functional
from genjax.sampling import diffusion, diffusion_bound

CLASSES = 3
SPEC = images((4, 4, 1), classes=CLASSES, train=1)
EMPTY = {"denoiser": {}}


def spying_network(denoise):
    """A network without parameters that hands out what it was given, as its mutable state."""

    def apply(params, mutable, x, t, label, key=None, train=False):
        seen = {"x": x, "t": t, "train": train}
        return denoise(x, t, label), seen | ({} if label is None else {"label": label})

    return Functional(lambda key: ({}, {}), apply)


def method(denoise, **options):
    return ddpm.from_network(spying_network(denoise), ddpm.Options(**options), SPEC, ())


def batch_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (count, 4, 4, 1), np.uint8)),
        "label": jnp.asarray(rng.integers(0, CLASSES, count), jnp.int32),
    }


def loss_of(m, batch, key=0):
    value, aux = m.phases[0].loss(EMPTY, EMPTY, batch, jax.random.key(key), 0)
    seen = {k: np.asarray(v, np.float64) for k, v in aux.mutable["denoiser"].items()}
    return float(value), aux, seen


def cosine(T):
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    return betas, np.cumprod(1 - betas)


def decoder_nats(x0, mean, deviation):
    """Ho et al. 2020, eq. 13, for means near the data, where no tail loses digits."""
    low = np.where(x0 <= -1, -np.inf, (x0 - 1 / 255 - mean) / deviation)
    high = np.where(x0 >= 1, np.inf, (x0 + 1 / 255 - mean) / deviation)
    return -np.log(stats.norm.cdf(high) - stats.norm.cdf(low))


def expected_loss(weighting, prediction, output, x0, seen, T, variance, gamma=5.0):
    """The papers' formulas in float64, from the x_t and t that the network was shown."""
    betas, bars = cosine(T)
    t, x = seen["t"].astype(int), seen["x"]
    bar, beta = (a[t][:, None, None, None] for a in (bars, betas))
    alpha, sigma, snr = np.sqrt(bar), np.sqrt(1 - bar), bar / (1 - bar)
    noise = (x - alpha * x0) / sigma
    target = {"epsilon": noise, "x0": x0, "v": alpha * noise - sigma * x0}[prediction]
    x0_hat = {
        "epsilon": (x - sigma * output) / alpha,
        "x0": output,
        "v": alpha * x - sigma * output,
    }[prediction]
    if weighting == "simple":
        return ((output - target) ** 2).mean()
    if weighting == "min_snr":
        return (np.minimum(snr, gamma) * (x0_hat - x0) ** 2).mean()
    small = np.concatenate([[0], (1 - bars[:-1]) / (1 - bars[1:])]) * betas
    small[0] = small[1]
    model = small if variance == "fixed_small" else np.where(np.arange(T) == 0, small, betas)
    true, sigma2 = (a[t][:, None, None, None] for a in (small, model))
    epsilon_hat = (x - alpha * x0_hat) / sigma
    # Ho et al. 2020, eq. 12, and the constants of the KL between two Gaussians.
    kl = beta**2 / (2 * sigma2 * (1 - beta) * (1 - bar)) * (noise - epsilon_hat) ** 2
    kl = kl + 0.5 * (np.log(sigma2 / true) + true / sigma2 - 1)
    first = t == 0
    kl[first] = decoder_nats(x0[first], x0_hat[first], np.sqrt(small[0]))
    return T * kl.mean()


@pytest.mark.parametrize(
    ("weighting", "variance"),
    [
        ("simple", "fixed_small"),
        ("min_snr", "fixed_small"),
        ("variational", "fixed_small"),
        ("variational", "fixed_large"),
    ],
)
@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_loss_is_the_papers(prediction, weighting, variance):
    T = 20
    batch = batch_of(40)  # stratified: every timestep twice, t = 0 included

    def denoise(x, t, label):
        return 0.8 * jnp.tanh(x) + 0.01 * t[:, None, None, None]

    m = method(
        denoise, num_timesteps=T, prediction=prediction, weighting=weighting, variance=variance
    )
    value, aux, seen = loss_of(m, batch)
    assert sorted(seen["t"]) == sorted(list(range(T)) * 2)
    assert np.all(seen["train"])
    x0 = np.asarray(batch["image"], np.float64) / 127.5 - 1
    output = 0.8 * np.tanh(seen["x"]) + 0.01 * seen["t"][:, None, None, None]
    want = expected_loss(weighting, prediction, output, x0, seen, T, variance)
    np.testing.assert_allclose(value, want, rtol=3e-4)
    assert aux.weight == 40


@pytest.mark.parametrize("weighting", ["min_snr", "variational"])
def test_loss_does_not_depend_on_the_parametrisation(weighting):
    """One and the same x0_hat, said as epsilon, x0 or v, costs the same."""
    T = 20
    schedule = diffusion.schedule_from_betas(diffusion.cosine_betas(T))

    def denoise(prediction):
        def apply(x, t, label):
            index = t.astype(jnp.int32)
            pair = diffusion.to_prediction("x0", schedule, 0.8 * jnp.tanh(x), x, index)
            return diffusion.prediction_target(prediction, schedule, *pair, index)

        return apply

    losses = [
        loss_of(
            method(denoise(p), num_timesteps=T, prediction=p, weighting=weighting), batch_of(20)
        )[0]
        for p in diffusion.PREDICTIONS
    ]
    np.testing.assert_allclose(losses, losses[0], rtol=2e-4)


def test_noise_is_standard_normal_and_the_metric_is_its_error():
    m = method(lambda x, t, label: jnp.zeros_like(x), num_timesteps=50)
    batch = batch_of(2000)
    value, aux, seen = loss_of(m, batch)
    bar = cosine(50)[1][seen["t"].astype(int)][:, None, None, None]
    x0 = np.asarray(batch["image"], np.float64) / 127.5 - 1
    noise = (seen["x"] - np.sqrt(bar) * x0) / np.sqrt(1 - bar)
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / noise.size)
    np.testing.assert_allclose([value, aux.metrics["epsilon_mse"]], (noise**2).mean(), rtol=1e-5)


def test_timesteps_are_stratified_and_uniform():
    keys = jax.random.split(jax.random.key(0), 500)
    u = np.asarray(
        jax.vmap(lambda key: diffusion_bound.stratified_uniform(key, 8))(keys), np.float64
    )
    assert np.all((u >= 0) & (u < 1))
    np.testing.assert_allclose(np.diff(np.sort(u, axis=1), axis=1), 1 / 8, atol=1e-6)
    # The first number alone is uniform, too.
    assert stats.kstest(u[:, 0], "uniform").pvalue > 1e-3


def test_label_dropout_rate():
    m = method(lambda x, t, label: x, class_conditional=True, label_dropout=0.2)
    batch = batch_of(5000)
    _, _, seen = loss_of(m, batch)
    hidden = seen["label"] == CLASSES
    assert abs(hidden.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 5000)
    np.testing.assert_array_equal(seen["label"][~hidden], np.asarray(batch["label"])[~hidden])


def test_loss_is_pure_and_driven_by_its_key():
    m = method(lambda x, t, label: 0 * x)
    a, b, c = (loss_of(m, batch_of(4), key)[0] for key in (0, 0, 1))
    assert a == b != c


VALUES = np.array([-0.6, 0.1, 0.7, 0.2], np.float32)  # a level for each class, then the null


def by_label(x, t, label):
    return jnp.broadcast_to(jnp.asarray(VALUES)[label][:, None, None, None], x.shape)


def draw(m, num=4, label=None, **choices):
    condition = {} if label is None else {"label": jnp.asarray(label)}
    sample = jax.jit(lambda key: m.sample(EMPTY, EMPTY, key, num, condition, **choices))
    return np.asarray(sample(jax.random.key(3)))


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
@pytest.mark.parametrize("steps", [1, 7, None])
def test_samples_are_what_the_network_believes_in(sampler, steps):
    """x0_hat fixed by the label: every sampler ends exactly there, in the data's own format."""
    m = method(by_label, num_timesteps=20, prediction="x0", class_conditional=True)
    image = draw(m, label=[2, 0, 1, 1], sampler=sampler, steps=steps)
    assert image.shape == (4, 4, 4, 1)
    assert image.dtype == np.uint8
    want = np.round((VALUES[[2, 0, 1, 1]] + 1) * 127.5).astype(np.uint8)
    np.testing.assert_array_equal(image, np.broadcast_to(want[:, None, None, None], image.shape))


def test_labels_default_to_each_class_in_turn():
    m = method(by_label, num_timesteps=5, prediction="x0", class_conditional=True)
    turns = [draw(m, 5, (first + jnp.arange(5)) % 3) for first in range(3)]
    assert sum(np.array_equal(draw(m, 5), turn) for turn in turns) == 1


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_guidance_extrapolates_epsilon(prediction):
    """Against an unguided network that does the sum of Ho & Salimans (2022) on epsilon itself."""
    T, w = 10, 1.7
    schedule = diffusion.schedule_from_betas(diffusion.cosine_betas(T))

    def network(x, t, label):
        pull = jnp.asarray(VALUES)[label][:, None, None, None]
        return jnp.tanh(0.5 * x) + pull * (1 + 0.01 * t[:, None, None, None])

    def guided(x, t, label):
        index = t.astype(jnp.int32)
        with_label, without = (
            diffusion.to_prediction(prediction, schedule, network(x, t, k), x, index).epsilon
            for k in (label, jnp.full_like(label, CLASSES))
        )
        return without + w * (with_label - without)

    shared = dict(num_timesteps=T, class_conditional=True)
    labels = [0, 1, 2, 1]
    m = method(network, prediction=prediction, **shared)
    ours = draw(m, label=labels, guidance=w, sampler="ddim")
    want = draw(method(guided, **shared), label=labels, sampler="ddim")
    assert np.abs(ours.astype(int) - want).max() <= 1
    assert np.abs(ours.astype(int) - draw(m, label=labels, sampler="ddim")).max() > 1


def test_guidance_of_one_is_the_conditional_model_and_costs_one_call():
    shapes = []

    def network(x, t, label):
        shapes.append(x.shape[0])
        return by_label(x, t, label)

    m = method(network, num_timesteps=5, prediction="x0", class_conditional=True)
    plain, one = draw(m), draw(m, guidance=1.0)
    assert set(shapes) == {4}
    np.testing.assert_array_equal(plain, one)
    shapes.clear()
    draw(m, guidance=2.0)
    assert set(shapes) == {8}


def test_defaults_of_sampling_come_from_the_options():
    def network(x, t, label):
        return jnp.tanh(x)

    chosen = dict(sampler="ddim", steps=3, eta=0.5)
    m = method(network, num_timesteps=20, prediction="x0", **chosen)
    plain = method(network, num_timesteps=20, prediction="x0")
    np.testing.assert_array_equal(draw(m), draw(plain, **chosen))
    assert np.any(draw(m) != draw(plain))
    assert np.any(draw(m) != draw(m, eta=0.0))


def test_samplers_refuse_what_they_cannot_do():
    m = method(by_label, num_timesteps=10, class_conditional=True)
    with pytest.raises(ConfigError, match="ancestral, ddim"):
        draw(m, sampler="dddim")
    with pytest.raises(ConfigError, match=r"steps=11.*num_timesteps=10"):
        draw(m, steps=11)
    with pytest.raises(ConfigError, match="steps=-1"):
        draw(m, steps=-1)
    with pytest.raises(ConfigError, match="eta=2"):
        draw(m, sampler="ddim", eta=2.0)
    with pytest.raises(ValueError, match="label: expected 4 labels"):
        draw(m, label=[0, 1])
    plain = method(lambda x, t, label: x, num_timesteps=10)
    with pytest.raises(ConfigError, match="label: the model knows no such condition"):
        draw(plain, label=[0, 1, 2, 0])
    with pytest.raises(ConfigError, match=r"guidance=2\.0"):
        draw(plain, guidance=2.0)


def options(**section):
    spec = section.pop("spec", SPEC)
    return ddpm.options_from_config(ConfigDict(section), spec)


def test_options_from_config():
    assert options() == ddpm.Options()
    assert options(prediction="v", steps=50).prediction == "v"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"noise_schedule": "cosin"}, "linear, cosine.*Nearest: cosine"),
        ({"prediction": "eps"}, "epsilon, x0, v"),
        ({"weighting": "minsnr"}, "simple, min_snr, variational.*Nearest: min_snr"),
        ({"variance": "learned"}, "fixed_small, fixed_large"),
        ({"sampler": "heun"}, "ancestral, ddim"),
        ({"num_timestep": 10}, "Nearest: num_timesteps"),
        ({"num_timesteps": 1}, "at least 2"),
        ({"eval_timesteps": 1}, "between 2 and num_timesteps=1000"),
        ({"eval_timesteps": 1001}, "between 2 and num_timesteps=1000"),
        ({"min_snr_gamma": 0.0}, "more than 0"),
        ({"label_dropout": 1.0}, "label_dropout=1.0"),
        ({"steps": 1001}, "steps=1001"),
        ({"guidance": 3.0}, "class_conditional=True"),
        ({"class_conditional": True, "label_dropout": 0.0, "guidance": 3.0}, "label_dropout > 0"),
        ({"class_conditional": True, "spec": images((4, 4, 1))}, "has no labels"),
    ],
)
def test_options_that_are_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        options(**section)


def test_build_refuses_data_that_are_not_square_images():
    config = ConfigDict({"diffusion": {}, "model": {}, "precision": "float32"})
    text = {"token": Field("text", (9,), np.dtype(np.int32))}
    with pytest.raises(ConfigError, match="needs images; the target of toy, 'token', is of kind"):
        ddpm.build(config, SPEC._replace(fields=text, target="token"))
    with pytest.raises(ConfigError, match="4 x 6"):
        ddpm.build(config, images((4, 6, 1)))


def test_build_with_the_unet():
    """The network's joint: class-conditional, guided, in bfloat16; only the loss is computed."""
    model = dict(
        channels=32, multipliers=(1,), blocks=1, attention=(), heads=1, dropout=0.0, patch_size=1
    )
    section = dict(num_timesteps=10, class_conditional=True, guidance=2.0, eval_timesteps=3)
    config = ConfigDict({"diffusion": section, "model": model, "precision": "bfloat16"})
    m = ddpm.build(config, SPEC)
    batch, key = batch_of(8), jax.random.key(0)
    params, mutable = jax.jit(m.init)(key, batch)
    assert set(params) == set(mutable) == {"denoiser"}
    value, _ = jax.jit(m.phases[0].loss)(params, mutable, batch, key, 0)
    # The network starts as zero, so the loss starts as the variance of the noise.
    assert value.dtype == jnp.float32
    assert abs(float(value) - 1) < 4 * np.sqrt(2 / (8 * 16))
    bits = jax.eval_shape(m.evaluate, params, mutable, batch, key)
    assert {value.shape for value in bits.values()} == {(8,)}
    images = jax.eval_shape(lambda: m.sample(params, mutable, key, 3, {}, steps=2))
    assert (images.shape, images.dtype) == ((3, 4, 4, 1), jnp.uint8)
