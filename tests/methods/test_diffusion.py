"""Diffusion's loss, guidance and sampling against the papers' formulas; what it refuses."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats
from specs import images

from genjax.config import ConfigError
from genjax.method import Field
from genjax.methods import diffusion
from genjax.networks import edm2_unet
from genjax.nn.functional import Functional, functional
from genjax.sampling import bound, parametrisation, paths
from genjax.training.codes import moments

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
    return diffusion.from_network(spying_network(denoise), diffusion.Options(**options), SPEC, ())


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
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
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
    path = paths.make("cosine", T)

    def denoise(prediction):
        def apply(x, t, label):
            at = paths.tabulated(path, t.astype(jnp.int32))
            if prediction == "edm":  # whose network sees x scaled
                x = x / paths.like(parametrisation.preconditioning(at, 0.5).into, x)
            pair = parametrisation.interpret("x0", at, 0.8 * jnp.tanh(x), x)
            return parametrisation.target(prediction, at, pair.x0, pair.epsilon)

        return apply

    losses = [
        loss_of(
            method(denoise(p), num_timesteps=T, prediction=p, weighting=weighting), batch_of(20)
        )[0]
        for p in parametrisation.KINDS
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
    u = np.asarray(jax.vmap(lambda key: bound.stratified_uniform(key, 8))(keys), np.float64)
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
    keywords = m.plan(**choices)
    sample = jax.jit(lambda key: m.sample(EMPTY, EMPTY, key, num, condition, **keywords))
    return np.asarray(sample(jax.random.key(3)))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++_2m"])
@pytest.mark.parametrize("steps", [1, 7, 0])
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
    turns = [draw(m, 5, (first + jnp.arange(5)) % 3, steps=5) for first in range(3)]
    assert sum(np.array_equal(draw(m, 5, steps=5), turn) for turn in turns) == 1


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_guidance_extrapolates_epsilon(prediction):
    """Against an unguided network that does the sum of Ho & Salimans (2022) on epsilon itself."""
    T, w = 10, 1.7
    path = paths.make("cosine", T)

    def network(x, t, label):
        pull = jnp.asarray(VALUES)[label][:, None, None, None]
        return jnp.tanh(0.5 * x) + pull * (1 + 0.01 * t[:, None, None, None])

    def guided(x, t, label):
        at = paths.tabulated(path, t.astype(jnp.int32))
        with_label, without = (
            parametrisation.interpret(prediction, at, network(x, t, k), x).epsilon
            for k in (label, jnp.full_like(label, CLASSES))
        )
        return without + w * (with_label - without)

    shared = dict(num_timesteps=T, class_conditional=True, sampler="ddim", steps=T)
    labels = [0, 1, 2, 1]
    m = method(network, prediction=prediction, **shared)
    ours = draw(m, label=labels, guidance=w)
    want = draw(method(guided, **shared), label=labels)
    assert np.abs(ours.astype(int) - want).max() <= 1
    assert np.abs(ours.astype(int) - draw(m, label=labels)).max() > 1


def test_guidance_of_one_is_the_conditional_model_and_costs_one_call():
    shapes = []

    def network(x, t, label):
        shapes.append(x.shape[0])
        return by_label(x, t, label)

    m = method(network, num_timesteps=5, prediction="x0", class_conditional=True, steps=5)
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
    m = method(by_label, num_timesteps=10, class_conditional=True, steps=10)
    for wrong, message in (
        (dict(sampler="dddim"), "Nearest: ddim"),
        (dict(steps=11), "steps=11.*between 1 and 10"),
        (dict(steps=-1), "steps=-1"),
        (dict(steps=2.5), r"steps=2\.5.*a whole number"),
        (dict(steps=True), "steps=True"),
        (dict(guidance="high"), "guidance='high'.*a finite number"),
        (dict(sampler="ddim", eta=2.0), "eta=2"),
        (dict(sampler="unipc", eta=0.5), "sampler unipc has no such option; these have: ddim"),
        (dict(sampler="ddim", order=2), "these have: unipc"),
        (dict(spacing="even"), "uniform, trailing"),
        (dict(times=(5, 7)), "decreasing times of the path, from 9 to 0"),
        (dict(end="middle"), "data, first"),
        (dict(guidance_kind="affine"), "linear, projected, cfg"),
        (dict(threshold=101), "a percentile"),
        (dict(threshold=99, guidance_kind="cfg++", guidance=0.5, sampler="ddim"), "Remove one"),
        (dict(guidance=float("nan")), "guidance=nan.*a finite number"),
        (dict(guidance_rescale="x"), "guidance_rescale='x'.*a finite number"),
        (dict(guidance_interval=3), "guidance_interval=3.*two numbers"),
        (dict(guidance_interval=("a", "b")), "two numbers"),
        (dict(guidance_radius=None), "guidance_radius=None"),
        (dict(rho=-1.0), "rho=-1.0.*more than 0"),
        (dict(times=5), "times=5: expected numbers"),
        (dict(times="abc"), "times='abc': expected numbers"),
        (dict(times=(5, 2), steps=3), "both given"),
        (dict(churn=1.0), "churn=1.0: sampler .* has no such option; these have: edm"),
    ):
        with pytest.raises(ConfigError, match=message):
            m.plan(**wrong)
    with pytest.raises(ValueError, match="label: expected 4 labels"):
        draw(m, label=[0, 1])
    plain = method(lambda x, t, label: x, num_timesteps=10, steps=10)
    with pytest.raises(ConfigError, match="label: the model has no such condition"):
        draw(plain, label=[0, 1, 2, 0])
    with pytest.raises(ConfigError, match="guidance: the model must have been trained with"):
        draw(plain, guidance=2.0)


def test_guidance_by_weights_of_the_same_run():
    """Karras et al. 2024b, eq. 3, of a network that believes in its one parameter; no labels."""

    def apply(params, mutable, x, t, label, key=None, train=False):
        return jnp.broadcast_to(params["level"], x.shape), mutable

    net = Functional(lambda key: ({"level": jnp.float32(0)}, {}), apply)
    options = diffusion.Options(num_timesteps=10, steps=5, prediction="x0")
    m = diffusion.from_network(net, options, SPEC, ())
    params = {"denoiser": {"level": 0.25}, "guide/denoiser": {"level": 0.5}}

    def drawn(params, **choices):
        return m.sample(params, EMPTY, jax.random.key(0), 2, {}, **m.plan(**choices))

    value = np.asarray(drawn(params, guidance=3.0))
    assert set(value.ravel()) == {round((0.5 + 3 * (0.25 - 0.5) + 1) * 127.5)}
    with pytest.raises(ConfigError, match="guidance=1 is none, but --guide_ema"):
        drawn(params)
    with pytest.raises(ConfigError, match="must have been trained with"):
        drawn({"denoiser": params["denoiser"]}, guidance=3.0)


def test_a_plan_is_arrays_and_what_is_compiled():
    """Another solver of as many calls is the same program: see `sampling.draw`."""
    m = method(by_label, num_timesteps=10, class_conditional=True, steps=10)
    plans = [m.plan(sampler=s, guidance=w) for s, w in (("ddim", 2.0), ("euler", 3.0))]
    shapes = [jax.tree.map(np.shape, (p.pop("table"), p.pop("guidance"))) for p in plans]
    assert shapes[0] == shapes[1]
    assert plans[0] == plans[1]


def options(**section):
    spec = section.pop("spec", SPEC)
    return diffusion.options_from_config(ConfigDict(section), spec)


def test_options_from_config():
    assert options() == diffusion.Options()
    assert options(prediction="v", steps=50).prediction == "v"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"path": "cosin"}, "linear, cosine.*Nearest: cosine"),
        ({"prediction": "eps"}, "epsilon, x0, v, velocity, edm"),
        ({"weighting": "minsnr"}, "simple, min_snr, variational.*Nearest: min_snr"),
        ({"variance": "learnt"}, "fixed_small, fixed_large, learned"),
        ({"sampler": "heunn"}, "euler, ddim.*Nearest: heun"),
        ({"num_timestep": 10}, "Nearest: num_timesteps"),
        ({"num_timesteps": 1}, "at least 2"),
        ({"eval_timesteps": 1}, "between 2 and num_timesteps=1000"),
        ({"eval_timesteps": 1001}, "between 2 and num_timesteps=1000"),
        ({"min_snr_gamma": 0.0}, "above 0"),
        ({"label_dropout": 1.0}, "label_dropout=1.0"),
        ({"steps": 1001}, "steps=1001"),
        ({"guidance": 3.0}, "class_conditional=True"),
        ({"class_conditional": True, "label_dropout": 0.0, "guidance": 3.0}, "label_dropout > 0"),
        ({"path": "flow"}, "with num_timesteps.*linear, cosine, sigmoid"),
        ({"zero_terminal_snr": True}, "ends in pure noise.*Use v, velocity, x0 or edm"),
        ({"path": "flow", "num_timesteps": 0}, "ends in pure noise"),
        ({"num_timesteps": 0, "zero_terminal_snr": True}, "Set diffusion.num_timesteps"),
        ({"num_timesteps": 0, "variance": "learned"}, "steps in discrete time"),
        ({"num_timesteps": 0, "eval_timesteps": 0}, "at least 1"),
        ({"times": "logit_normal"}, "with num_timesteps.*uniform"),
        ({"num_timesteps": 0, "times": "lognormal"}, "on diffusion.path='edm'"),
        ({"weighting": "min_snr", "coupling": "ot"}, "independent, optimal_transport"),
        ({"sigma_data": 0.0}, "sigma_data=0.0"),
        ({"shift": 0.0}, "above 0"),
        ({"class_conditional": True, "spec": images((4, 4, 1))}, "has no labels"),
    ],
)
def test_options_that_are_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        options(**section)


MODEL = dict(
    channels=32, multipliers=(1,), blocks=1, attention=(), heads=1, dropout=0.0, patch_size=1
)


def built(spec, **section):
    model = {"network": "unet", "denoiser": MODEL}
    config = {"diffusion": section, "model": model, "precision": "bfloat16"}
    return diffusion.build(ConfigDict(config), spec)


def test_build_refuses_what_is_no_image():
    text = {"token": Field("text", (9,), np.dtype(np.int32))}
    with pytest.raises(ConfigError, match=r"images or latents.*'token', is of kind 'text' and"):
        built(SPEC._replace(fields=text, target="token"))
    tokens = {"code": Field("code", (4, 4, 1), np.dtype(np.int32))}
    with pytest.raises(ConfigError, match="of kind 'code' of tokens"):
        built(SPEC._replace(fields=tokens, target="code"))
    with pytest.raises(ConfigError, match="4 x 6"):
        jax.eval_shape(built(images((4, 6, 1))).init, jax.random.key(0), {})


def test_build_with_the_unet():
    """The network's joint: class-conditional, guided, in bfloat16; only the loss is computed."""
    m = built(
        SPEC, num_timesteps=10, class_conditional=True, guidance=2.0, eval_timesteps=3, steps=2
    )
    batch, key = batch_of(8), jax.random.key(0)
    params, mutable = jax.jit(m.init)(key, batch)
    assert set(params) == set(mutable) == {"denoiser"}
    value, _ = jax.jit(m.phases[0].loss)(params, mutable, batch, key, 0)
    # The network starts as zero, so the loss starts as the variance of the noise.
    assert value.dtype == jnp.float32
    assert abs(float(value) - 1) < 4 * np.sqrt(2 / (8 * 16))
    bits = jax.eval_shape(m.evaluate, params, mutable, batch, key)
    assert {value.shape for value in bits.values()} == {(8,)}
    keywords = m.plan()
    images = jax.eval_shape(lambda: m.sample(params, mutable, key, 3, {}, **keywords))
    assert (images.shape, images.dtype) == ((3, 4, 4, 1), jnp.uint8)


def test_a_learned_variance_needs_twice_the_channels():
    m = built(SPEC, num_timesteps=10, variance="learned", sampler="ddpm", steps=5, eval_timesteps=3)
    params, mutable = jax.eval_shape(m.init, jax.random.key(0), {})
    assert params["denoiser"]["head"]["kernel"].shape[-1] == 2
    keywords = m.plan()
    draw = lambda p, m_, key: m.sample(p, m_, key, 3, {}, **keywords)  # noqa: E731
    assert jax.eval_shape(draw, params, mutable, jax.random.key(0)).shape == (3, 4, 4, 1)


def test_the_bound_teaches_the_variance_and_nothing_else():
    """Nichol & Dhariwal 2021, eq. 16: the simple loss, and 0.001 T of the bound's terms."""
    T, batch, key = 20, batch_of(40), jax.random.key(0)
    net = Functional(
        lambda key: ({}, {}),
        lambda params, mutable, x, t, label, key=None, train=False: (
            jnp.concatenate([params["a"] * x, params["b"] * jnp.tanh(x)], axis=-1),
            {"x": x, "t": t},
        ),
    )
    own = {"denoiser": {"a": jnp.float32(0.5), "b": jnp.float32(-0.4)}}
    found = {}
    for variance in ("learned", "fixed_small"):
        o = diffusion.Options(num_timesteps=T, prediction="x0", variance=variance)
        mine = net
        if variance == "fixed_small":
            mine = net._replace(
                apply=lambda *args, **named: (lambda out, seen: (out[..., :1], seen))(
                    *net.apply(*args, **named)
                )
            )
        loss = diffusion.from_network(mine, o, SPEC, ()).phases[0].loss
        run = jax.value_and_grad(lambda p: loss(p, EMPTY, batch, key, 0), has_aux=True)  # noqa: B023
        (value, aux), slope = jax.jit(run)(own)
        found[variance] = float(value), slope["denoiser"], aux.mutable["denoiser"]
    (whole, slope, seen), (simple, plain, _) = found["learned"], found["fixed_small"]
    np.testing.assert_allclose(slope["a"], plain["a"], rtol=1e-5)
    assert plain["b"] == 0 != slope["b"]
    # The terms, by the papers' formulas in float64.
    betas, bars = cosine(T)
    t, x = np.asarray(seen["t"]).astype(int), np.asarray(seen["x"], np.float64)
    x0 = np.asarray(batch["image"], np.float64) / 127.5 - 1
    before = np.concatenate([[1.0], bars[:-1]])
    small = (1 - before) / (1 - bars) * betas
    small[0] = small[1]
    small, beta, bar, previous = (a[t][:, None, None, None] for a in (small, betas, bars, before))
    fraction = 0.5 * (-0.4 * np.tanh(x) + 1)
    variance = np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(small))
    gap = np.sqrt(previous) * beta / (1 - bar) * (x0 - 0.5 * x)
    kl = 0.5 * (np.log(variance / small) + (small + gap**2) / variance - 1)
    first = t == 0
    kl[first] = decoder_nats(x0[first], 0.5 * x[first], np.sqrt(variance[first]))
    np.testing.assert_allclose(whole - simple, 1e-3 * T * kl.mean(), rtol=1e-3)


def test_latents_are_of_zero_mean_and_unit_variance_and_come_back():
    """By the moments of a channel that are measured over the codes of the training split."""
    codes = np.random.default_rng(0).normal([1, -2], [3, 0.5], (500, 4, 4, 2)).astype(np.float32)
    facts = moments(codes)
    flat = codes.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(facts["mean"], flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(facts["std"], flat.std(0), rtol=1e-6)
    spec = SPEC._replace(
        fields={"code": Field("code", (4, 4, 2), np.dtype(np.float32), facts)}, target="code"
    )
    net = spying_network(lambda x, t, label: jnp.zeros_like(x))
    model = diffusion.denoiser_of(net, diffusion.Options(), spec)
    x = model.data({"code": jnp.asarray(codes)})
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(model.output(x), codes, atol=1e-5)
    assert not model.clips


def test_optimal_transport_permutes_the_noise_alone():
    """The permutation of the least squared distance (Tong et al. 2024), by trying all of them."""
    o = diffusion.Options(coupling="optimal_transport")
    rng = np.random.default_rng(0)
    x0, noise = (jnp.asarray(rng.normal(size=(5, 2, 2, 1)), jnp.float32) for _ in range(2))
    found = np.asarray(diffusion.coupled(o, x0, noise))
    best = min(
        itertools.permutations(range(5)),
        key=lambda order: float(jnp.square(x0 - noise[jnp.asarray(order)]).sum()),
    )
    np.testing.assert_array_equal(found, np.asarray(noise)[list(best)])


def test_a_learned_uncertainty_weighs_the_loss():
    """E exp(-u) |F - target|^2 + u (Karras et al. 2024, eq. 21), u of the time told."""
    m = method(
        lambda x, t, label: jnp.zeros_like(x),
        prediction="edm",
        path="edm",
        num_timesteps=0,
        times="lognormal",
        weighting="uncertainty",
    )
    batch = batch_of(16)
    params, mutable = m.init(jax.random.key(1), batch)
    assert m.phases[0].trains == ("denoiser", "uncertainty")
    value, aux = m.phases[0].loss(params, mutable, batch, jax.random.key(0), 0)
    seen = {k: np.asarray(v, np.float64) for k, v in aux.mutable["denoiser"].items()}
    net = functional(lambda rngs: edm2_unet.Uncertainty(rngs=rngs))
    u, _ = net.apply(params["uncertainty"], mutable["uncertainty"], jnp.asarray(seen["t"]))
    sigma = np.exp(seen["t"] / 250).reshape(-1, 1, 1, 1)
    x0 = np.asarray(batch["image"], np.float64) / 127.5 - 1
    skip = 0.25 / (sigma**2 + 0.25)
    x = seen["x"] * np.sqrt(sigma**2 + 0.25)  # the network sees c_in x
    target = (x0 - skip * x) / (sigma * 0.5 / np.sqrt(sigma**2 + 0.25))
    each = np.square(target).mean((1, 2, 3))
    np.testing.assert_allclose(value, (np.exp(-u) * each + u).mean(), rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["unweighted_loss"], each.mean(), rtol=1e-4)
    norm = np.linalg.norm(m.project["uncertainty"](params["uncertainty"])["linear"]["mp_kernel"])
    np.testing.assert_allclose(norm, np.sqrt(128), rtol=1e-3)
