"""The variational bound in discrete time against models whose bound is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from specs import images

from genjax.methods import diffusion
from genjax.nn.functional import Functional
from genjax.sampling import bound as bounds
from genjax.sampling import paths

SPEC = images((4, 4, 2), classes=3, train=1)


def method(denoise, **options):
    """Diffusion whose network is `denoise(x, t, label)`, without parameters."""
    net = Functional(
        lambda key: ({}, {}),
        lambda params, mutable, x, t, label, **kwargs: (denoise(x, t, label), mutable),
    )
    return diffusion.from_network(net, diffusion.Options(**options), SPEC, ())


def bound(denoise, image, key=0, label=None, **options):
    m = method(denoise, **options)
    batch = {"image": jnp.asarray(image)}
    if label is not None:
        batch["label"] = jnp.asarray(label)
    empty = {"denoiser": {}}
    out = jax.jit(m.evaluate)(empty, empty, batch, jax.random.key(key))
    return {name: np.asarray(value, np.float64) for name, value in out.items()}


def alpha_bars(name, T):
    if name == "linear":
        return np.cumprod(1 - np.linspace(0.1 / T, 20 / T, T))
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))


def decoder_deviation(bars):
    return np.sqrt((1 - bars[0]) / (1 - bars[1]) * (1 - bars[1] / bars[0]))


def decoder_bits(image, mean, deviation):
    """Ho et al. 2020, eq. 13, by scipy in float64, in the tail that keeps its digits."""
    x, half = image.astype(np.float64) / 127.5 - 1, 1 / 255
    low = np.where(image == 0, -np.inf, (x - half - mean) / deviation)
    high = np.where(image == 255, np.inf, (x + half - mean) / deviation)
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    a, b = stats.norm.logcdf(low), stats.norm.logcdf(high)
    return -(b + np.log1p(-np.exp(a - b))) / np.log(2)


def images(count=6):
    image = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 2), np.uint8)
    image[0, 0], image[1, 1] = 0, 255
    return image


def point_bound(image, c, name, T, variance):
    """The bound when x0_hat is always the constant c, which no noise can change.

    With the small variance KL_t = (SNR_{t-1} - SNR_t) / 2 (x0 - c)^2 (Kingma et al. 2021, eq. 14),
    which telescopes; with the large one each is a KL between two Gaussians.
    """
    bars = alpha_bars(name, T)
    x0 = image.astype(np.float64) / 127.5 - 1
    previous, now = bars[:-1], bars[1:]
    if variance == "fixed_small":
        nats = (bars[0] / (1 - bars[0]) - bars[-1] / (1 - bars[-1])) / 2 * (x0 - c) ** 2
    else:
        beta = 1 - now / previous
        small = (1 - previous) / (1 - now) * beta
        gap = (np.sqrt(previous) * beta / (1 - now)) ** 2 * (x0 - c)[..., None] ** 2
        nats = (0.5 * (np.log(beta / small) + (small + gap) / beta - 1)).sum(-1)
    nats += 0.5 * (bars[-1] * x0**2 - bars[-1] - np.log(1 - bars[-1]))
    bits = nats / np.log(2) + decoder_bits(image, c, decoder_deviation(bars))
    return bits.reshape(len(image), -1).mean(1)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("name", "T"), [("linear", 1000), ("cosine", 1000), ("cosine", 2)])
def test_exact_bound_of_a_point_mass(name, T, variance):
    image, c = images(), 0.1
    got = bound(
        lambda x, t, label: jnp.full_like(x, c),
        image,
        num_timesteps=T,
        path=name,
        prediction="x0",
        variance=variance,
        eval_timesteps=0,
    )
    want = point_bound(image, c, name, T, variance)
    np.testing.assert_allclose(got["bits_per_dim"], want, rtol=2e-5)
    bars = alpha_bars(name, T)
    decoder = decoder_bits(image, c, decoder_deviation(bars)).reshape(len(image), -1).mean(1)
    np.testing.assert_allclose(got["bits_per_dim_decoder"], decoder, rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_exact_bound_of_a_point_mass_with_a_learned_variance(fraction):
    """log variance between both (Nichol & Dhariwal 2021, eq. 15); each term by scipy's densities.

    The KL between two Gaussians is the expectation of log q - log p under q, by quadrature.
    """
    image, c, T = images(2), 0.1, 20
    bars = alpha_bars("cosine", T)
    x0 = image.astype(np.float64) / 127.5 - 1
    previous, now = bars[:-1], bars[1:]
    beta = 1 - now / previous
    small = (1 - previous) / (1 - now) * beta
    variance = np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(small))
    gap = np.sqrt(previous) * beta / (1 - now) * (x0 - c)[..., None]  # between the two means
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()
    x = np.sqrt(small)[:, None] * nodes
    log_q = stats.norm.logpdf(x, 0, np.sqrt(small)[:, None])
    log_p = stats.norm.logpdf(x + gap[..., None], 0, np.sqrt(variance)[:, None])
    nats = ((log_q - log_p) @ weights).sum(-1)
    nats += 0.5 * (bars[-1] * x0**2 - bars[-1] - np.log(1 - bars[-1]))
    first = np.exp(fraction * np.log(1 - bars[0]) + (1 - fraction) * np.log(small[0]))
    bits = nats / np.log(2) + decoder_bits(image, c, np.sqrt(first))
    got = bound(
        lambda x, t, label: jnp.concatenate(
            [jnp.full_like(x, c), jnp.full_like(x, 2 * fraction - 1)], axis=-1
        ),
        image,
        num_timesteps=T,
        prediction="x0",
        variance="learned",
        eval_timesteps=0,
    )
    np.testing.assert_allclose(got["bits_per_dim"], bits.reshape(2, -1).mean(1), rtol=2e-5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_estimate_is_unbiased(variance):
    """Over 300 keys, within four standard errors of the exact bound; x0_hat depends on x_t and t,
    so the terms differ in size and carry noise.
    """
    options = dict(num_timesteps=50, prediction="x0", variance=variance)
    image = images(4)

    def denoise(x, t, label):
        return 0.9 * jnp.tanh(x) * (1 - t / 60)[:, None, None, None]

    def draws(count, keys):
        evaluate = method(denoise, eval_timesteps=count, **options).evaluate
        batch, empty = {"image": jnp.asarray(image)}, {"denoiser": {}}
        run = jax.vmap(lambda key: evaluate(empty, empty, batch, key)["bits_per_dim"])
        keys = jax.random.split(jax.random.key(5), keys)
        return np.asarray(jax.jit(run)(keys), np.float64).mean(1)

    exact, estimate = draws(0, 100), draws(6, 300)
    error = np.sqrt(exact.var() / exact.size + estimate.var() / estimate.size)
    assert abs(exact.mean() - estimate.mean()) < 4 * error
    assert error < 0.01 * exact.mean()


def test_bound_of_a_fair_coin_approaches_one_bit():
    """Pixels 0 or 255 by a fair coin: one bit each, and the decoder's cost on top.

    The best denoiser is tanh(alpha x / sigma^2), and the bound's expectation an integral over one
    Gaussian, here by Gauss-Hermite quadrature in float64.
    """
    T = 1000
    bars = alpha_bars("cosine", T)
    nodes, weights = np.polynomial.hermite_e.hermegauss(201)
    weights = weights / weights.sum()
    snr = bars / (1 - bars)
    error = (weights * (1 - np.tanh(snr[:, None] + np.sqrt(snr)[:, None] * nodes)) ** 2).sum(1)
    nats = 0.5 * ((snr[:-1] - snr[1:]) * error[1:]).sum() - 0.5 * np.log(1 - bars[-1])
    image = np.where(np.random.default_rng(0).random((64, 4, 4, 2)) < 0.5, 0, 255).astype(np.uint8)
    assert 1.0 < nats / np.log(2) < 1.01
    # Naming the level once x_0 is known costs the half of the Gaussian that misses its bin.
    decoder = decoder_bits(image, np.where(image > 0, 1.0, -1.0), decoder_deviation(bars)).mean()
    want = nats / np.log(2) + decoder

    scale = jnp.asarray(np.sqrt(bars) / (1 - bars), jnp.float32)

    def denoise(x, t, label):
        return jnp.tanh(scale[t.astype(jnp.int32)][:, None, None, None] * x)

    got = bound(denoise, image, prediction="x0", eval_timesteps=0)["bits_per_dim"]
    assert abs(got.mean() - want) < 4 * got.std() / np.sqrt(got.size)
    assert got.std() / np.sqrt(got.size) < 0.02


@pytest.mark.parametrize("deviation", [0.002, 0.01, 0.3, 2.0])
def test_decoder_against_scipy(deviation):
    """All levels against means near and far; and the 256 masses sum to one."""
    image = np.arange(256, dtype=np.uint8)[:, None]
    mean = np.linspace(-1.2, 1.2, 37, dtype=np.float32)[None, :]
    x0 = jnp.asarray(image / np.float32(127.5) - 1, jnp.float32)
    nats = np.asarray(bounds.decoder_nll(x0, jnp.asarray(mean), deviation), np.float64)
    want = decoder_bits(image, mean.astype(np.float64), deviation) * np.log(2)
    # float32 places the bin to 6e-8, which a tail of z deviations magnifies by z / deviation.
    distance = np.abs(np.asarray(x0, np.float64) - mean) / deviation
    np.testing.assert_array_less(
        np.abs(nats - want), 1e-3 + 4e-7 * want + 2e-7 * distance / deviation
    )
    np.testing.assert_allclose(np.exp(-nats).sum(0), 1, rtol=1e-4)
    slope = jax.grad(lambda m: bounds.decoder_nll(x0, m, deviation).sum())(jnp.asarray(mean))
    assert np.isfinite(slope).all()


def test_prior_term_is_exact():
    path = paths.make("linear", 1000)
    bar = alpha_bars("linear", 1000)[-1]
    x0 = np.linspace(-1, 1, 12).reshape(2, 6)
    want = 0.5 * (bar * x0**2 + (1 - bar) - 1 - np.log(1 - bar))
    got = bounds.prior_term(path, jnp.asarray(x0, jnp.float32))
    np.testing.assert_allclose(got, want.mean(1), rtol=1e-4)


@pytest.mark.parametrize(("name", "T"), [("cosine", 1000), ("linear", 30)])
def test_drawn_timesteps_cover_their_probabilities(name, T):
    """The weights make every t count once on average; index 0 comes once, with weight 1."""
    steps = bounds.steps_of(paths.make(name, T))
    proposal = bounds.proposal_probabilities(steps, "fixed_small")
    np.testing.assert_allclose(proposal.sum(), 1)
    assert proposal[0] == 0 < proposal[1:].min()
    index, weight = bounds.draw_timesteps(steps, "fixed_small", 101, 20000, jax.random.key(0))
    assert index.shape == weight.shape == (101, 20000)
    assert np.all(index[0] == 0)
    assert np.all(weight[0] == 1)
    assert np.all((index[1:] >= 1) & (index[1:] < T))
    count = np.bincount(np.ravel(index[1:]), np.ravel(weight[1:]), T)[1:] / 20000
    # The 2e6 points are equally spaced, so each count is right to one point.
    slack = 1.5 / (20000 * 100 * proposal[1:]) + 1e-3
    np.testing.assert_array_less(np.abs(count - 1), slack)


def test_bound_sees_the_label():
    values = jnp.array([-0.5, 0.0, 0.5])
    image = images(3)
    got = bound(
        lambda x, t, label: jnp.broadcast_to(values[label][:, None, None, None], x.shape),
        image,
        label=[2, 0, 1],
        prediction="x0",
        num_timesteps=20,
        eval_timesteps=0,
        class_conditional=True,
    )
    want = [
        point_bound(image[i : i + 1], c, "cosine", 20, "fixed_small")[0]
        for i, c in enumerate((0.5, -0.5, 0.0))
    ]
    np.testing.assert_allclose(got["bits_per_dim"], want, rtol=2e-5)


def test_clipping_cannot_raise_the_bound():
    image = images()
    wild, clipped = (
        bound(lambda x, t, label, c=c: jnp.full_like(x, c), image, prediction="x0")["bits_per_dim"]
        for c in (7.0, 1.0)
    )
    np.testing.assert_array_equal(wild, clipped)


@pytest.mark.parametrize("prediction", ["velocity", "edm"])
def test_the_ode_gives_the_likelihood_of_gaussian_pixels(prediction):
    """Pixels of N(0.1, 0.7^2): -log2 of the density times a value's width, to 0.01 bit.

    A probe of +-1 has no error for such a model, whose derivative is diagonal.
    """
    mean, std = 0.1, 0.7
    path = paths.make("edm" if prediction == "edm" else "flow")
    table = np.linspace(max(float(path.lam(path.last)), -12.0), float(path.lam(path.first)), 4097)
    times = paths.levels_at(path, table).time_input
    o = {"path": "flow", "prediction": "velocity"}
    if prediction == "edm":
        o = {"path": "edm", "prediction": "edm", "sigma_data": std}

    def exact(x, t, label):
        """The output that stands for E[x_0 | x_t]."""
        lam = jnp.interp(-t, -times, table)
        alpha, sigma = (a[:, None, None, None] for a in paths.scales(path.scaling, lam))
        if prediction == "velocity":
            gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
            x0 = mean + gain * (x - alpha * mean)
            return (x - alpha * x0) / sigma - x0
        noisy = x * jnp.sqrt(sigma**2 + std**2)  # Karras et al. 2022, table 1
        x0 = mean + std**2 / (std**2 + sigma**2) * (noisy - mean)
        skip, out = std**2 / (sigma**2 + std**2), sigma * std / jnp.sqrt(sigma**2 + std**2)
        return (x0 - skip * noisy) / out

    image = images()
    found = bound(exact, image, likelihood_steps=256, num_timesteps=0, **o)
    x, width = image.astype(np.float64) / 127.5 - 1, 2 / 255
    square = (x - mean) ** 2 + width**2 / 12  # over the dequantisation
    want = np.log(std) + 0.5 * np.log(2 * np.pi) + square / (2 * std**2) - np.log(width)
    want = want.reshape(len(image), -1).mean(1) / np.log(2)
    np.testing.assert_allclose(found["bits_per_dim_ode"], want, atol=0.01)
    assert found["bits_per_dim_ode_error"].max() < 0.03  # before its correction
    assert "bits_per_dim_ode" not in bound(exact, image, num_timesteps=0, **o)
