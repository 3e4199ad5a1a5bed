"""The KL-regularised autoencoder: likelihood, bound, game and latents against closed forms."""

import math
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats
from specs import images

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import packages
from genjax.data.packages import EFFICIENTNET_LITE0
from genjax.interop import torch_file
from genjax.methods import autoencoder_kl as kl
from genjax.networks import perceptual
from genjax.nn.functional import Functional
from genjax.parallel.mesh import global_batch
from genjax.training.assemble import assemble, put_pretrained, read_pretrained

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "autoencoder_kl.npz")
KEY = jax.random.key(0)
SHAPE = (4, 4, 2)
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, *SHAPE), np.uint8))
KERNEL = np.array([[0.8, 0.3], [-0.2, 0.9]], np.float32)
DISTRIBUTIONS = {"laplace": stats.laplace, "gaussian": stats.norm}


def toy(shape=SHAPE, kernel=KERNEL, raw=-4.0, slope=1.0, log_scale=-1.0, start_step=0, **options):
    """q(z | x) = N(slope x, exp(raw)), the decoder z K, a discriminator linear in each pixel.

    The trunk's one map is the image times a matrix.
    """
    c = shape[-1]

    def encode(p, mutable, x, key=None, train=False):
        mean = p["slope"] * x
        return jnp.concatenate([mean, jnp.broadcast_to(p["raw"], x.shape)], -1), mutable

    def decode(p, mutable, z, key=None, train=False):
        return z @ p["out"]["kernel"], mutable

    def judge(p, mutable, x, key=None, train=False):
        return x @ p["v"], {"seen": mutable["seen"] + train}

    start = {"slope": jnp.float32(slope), "raw": jnp.float32(raw)}

    def look(p, mutable, x, key=None, train=False):
        return (x @ p["w"],), mutable

    v = jnp.linspace(-0.5, 1.0, c)
    method = kl.from_networks(
        Functional(lambda key: (start, {}), encode),
        Functional(lambda key: ({"out": {"kernel": jnp.asarray(kernel)}}, {}), decode),
        Functional(lambda key: ({"v": v}, {"seen": jnp.int32(0)}), judge),
        Functional(lambda key: ({"w": jnp.zeros((c, 3))}, {}), look),
        kl.Options(latent_channels=c, **options),
        images(shape),
        (),
        start_step,
    )
    params, mutable = method.init(KEY, {})
    params["autoencoder"]["log_scale"] = jnp.float32(log_scale)
    return method, params, mutable


WEIGHTS = {"w": np.random.default_rng(3).normal(size=(2, 3)).astype(np.float32)}


def test_moments_are_those_of_diffusers():
    """The clamp of the log variance, the deviation and the KL, of reasonable and absurd moments."""
    moments = jnp.asarray(GOLDEN["posterior/moments"])
    c = moments.shape[-1] // 2
    method, params, mutable = toy((2, 2, c), np.eye(c, dtype=np.float32))
    model = method.phases[0].loss.args[0]
    given = Functional(model.encoder.init, lambda p, m, x, **k: (moments, m))
    model = model._replace(encoder=given)
    own = (params["autoencoder"], mutable["autoencoder"])
    _, log_scale, _ = model.posterior(*own, moments[..., :c])
    np.testing.assert_allclose(jnp.exp(log_scale), GOLDEN["posterior/std"], rtol=1e-5)
    image = jnp.zeros((len(moments), 2, 2, c), jnp.uint8)
    evaluate = jax.jit(lambda key: kl.evaluate(model, params, mutable, {"image": image}, key))
    found = evaluate(KEY)
    np.testing.assert_allclose(found["kl"], GOLDEN["posterior/kl"], rtol=1e-5)


@pytest.mark.parametrize("likelihood", DISTRIBUTIONS)
def test_the_elbo_bounds_the_probability_of_the_image(likelihood):
    """One pixel, one latent: log p(x) of all 256 images by quadrature; the probabilities add up."""
    gain, scale, spread = 0.5, 0.15, 0.35
    raw = 2 * math.log(spread)
    method, params, mutable = toy(
        (1, 1, 1), np.array([[gain]], np.float32), raw, 1.6, likelihood=likelihood
    )
    raw_scale = kl.LIMIT * np.arctanh(math.log(scale) / kl.LIMIT)
    params["autoencoder"]["log_scale"] = jnp.float32(raw_scale)
    batch = {"image": jnp.arange(256, dtype=jnp.uint8)[:, None, None, None]}
    keys = jax.random.split(KEY, 4000)
    found = jax.jit(jax.vmap(lambda key: method.evaluate(params, mutable, batch, key)))(keys)
    x = np.arange(256) / 127.5 - 1
    z = np.linspace(-8, 8, 4001)
    peer = DISTRIBUTIONS[likelihood](gain * z, scale)
    edges = np.concatenate([[-np.inf], x[:-1] + 1 / 255, [np.inf]])
    mass = np.diff(peer.cdf(edges[:, None]), axis=0)
    evidence = np.log((mass * stats.norm.pdf(z)).sum(1) * (z[1] - z[0]))
    assert np.exp(evidence).sum() == pytest.approx(1, abs=1e-6)
    elbo = np.asarray(found["elbo"], np.float64)
    mean, error = elbo.mean(0), elbo.std(0) / math.sqrt(len(keys))
    assert (mean < evidence + 4 * error).all()
    assert (evidence - mean).mean() < 0.3
    np.testing.assert_allclose(found["elbo"], found["reconstruction"] - found["kl"], rtol=1e-5)
    np.testing.assert_allclose(found["bits_per_dim"], -elbo / math.log(2), rtol=1e-5)
    m, v = 1.6 * x, spread**2
    np.testing.assert_allclose(found["kl"][0], (m**2 + v - 1 - np.log(v)) / 2, rtol=1e-4)


def test_errors_are_of_what_the_mean_decodes_to():
    method, params, mutable = toy(raw=0.0)
    found = jax.jit(method.evaluate)(params, mutable, {"image": IMAGES}, KEY)
    x = np.asarray(IMAGES, np.float64) / 127.5 - 1
    made = x @ KERNEL
    assert np.abs(made).max() > 1  # which is cut off
    levels = np.clip(np.round((made + 1) * 127.5), 0, 255)
    error = np.square(levels - np.asarray(IMAGES, np.float64)).mean((1, 2, 3))
    np.testing.assert_allclose(found["mse"], error / 127.5**2, rtol=0.01)  # halves go either way
    np.testing.assert_allclose(found["psnr"], 10 * np.log10(255**2 / error), atol=0.05)


def test_the_adaptive_weight_is_its_closed_form():
    """Of a linear decoder the gradient of the kernel is z^T g (Esser et al. 2021, eq. 7)."""
    rng = np.random.default_rng(1)
    z, first, second = (rng.normal(size=(6, *SHAPE)).astype(np.float32) for _ in range(3))
    back = jax.vjp(lambda kernel: z @ kernel, KERNEL)[1]
    lengths = [np.linalg.norm(np.einsum("bhwi,bhwo->io", z, g)) for g in (first, second)]
    found = kl.adaptive_weight(back, first, second)
    assert float(found) == pytest.approx(lengths[0] / (lengths[1] + 1e-4), rel=1e-4)
    assert float(kl.adaptive_weight(back, 1e9 * first, second)) == kl.MOST
    assert float(kl.adaptive_weight(back, first, 0 * second)) == pytest.approx(
        min(lengths[0] / 1e-4, kl.MOST), rel=1e-4
    )


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("likelihood", DISTRIBUTIONS)
def test_the_decoder_descends_the_sum_of_its_terms(adaptive, likelihood):
    """Value and gradient of the sum differentiated as a whole, its weights constants."""
    options = {"kl_weight": 0.3, "perceptual_weight": 0.2, "adversarial_weight": 0.7}
    options["likelihood"] = likelihood
    method, params, mutable = toy(adaptive_weight=adaptive, **options)
    params["perceptual"] = WEIGHTS
    batch, step = {"image": IMAGES}, jnp.int32(0)
    model = method.phases[0].loss.args[0]
    (value, aux), slope = jax.jit(jax.value_and_grad(method.phases[0].loss, has_aux=True))(
        params, mutable, batch, KEY, step
    )
    x = jnp.asarray(IMAGES, jnp.float32) / 127.5 - 1
    noise = jax.random.normal(jax.random.fold_in(KEY, 0), x.shape)

    def terms(p):
        own = p["autoencoder"]
        mean, variance = own["encoder"]["slope"] * x, jnp.exp(own["encoder"]["raw"])
        made = (mean + jnp.sqrt(variance) * noise) @ own["decoder"]["out"]["kernel"]
        divergence = 0.5 * (mean**2 + variance - 1 - jnp.log(variance)).sum() / len(x)
        nats = model.log_likelihood(own, made, x).mean()
        features = [image @ WEIGHTS["w"] for image in (made, x)]
        first, second = (f / jnp.linalg.norm(f, axis=-1, keepdims=True) for f in features)
        apart = jnp.square(first - second).sum(-1).mean()
        logit = (made @ p["discriminator"]["v"]).mean()
        return jnp.stack([-nats, divergence, apart, -logit])

    slopes = jax.jit(jax.jacrev(terms))(params)["autoencoder"]["decoder"]["out"]["kernel"]
    scale = math.exp(kl.LIMIT * math.tanh(-1 / kl.LIMIT))
    unit = {"laplace": scale, "gaussian": 2 * scale**2}[likelihood]  # of an error in nats
    perceptual_weight = 0.2 * x[0].size / unit
    first = np.linalg.norm(slopes[0] + perceptual_weight * slopes[2])
    weight = 0.7 * (first / (np.linalg.norm(slopes[3]) + 1e-4) if adaptive else 1.0)
    assert float(aux.metrics["adversarial_weight"]) == pytest.approx(weight, rel=1e-4)

    def whole(p):
        return terms(p) @ jnp.array([1.0, 0.3, perceptual_weight, weight])

    expected, wanted = jax.jit(jax.value_and_grad(whole))(params)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        slope["autoencoder"],
        wanted["autoencoder"],
    )
    found = jax.jit(method.evaluate)(params, mutable, batch, KEY)
    assert found["perceptual"].shape == (len(IMAGES),)


def test_the_game_begins_at_its_step_and_the_discriminator_sees_both_kinds():
    method, params, mutable = toy(adversarial_weight=0.5, start_step=10)
    batch = {"image": IMAGES}
    values = {}
    for step in (9, 10):
        _, aux = method.phases[0].loss(params, mutable, batch, KEY, jnp.int32(step))
        judged, seen = method.phases[1].loss(params, mutable, batch, KEY, jnp.int32(step))
        values[step] = (float(aux.metrics["adversarial_weight"]), float(judged))
        assert set(aux.mutable) == {"autoencoder"}
        assert int(seen.mutable["discriminator"]["seen"]) == 2
    assert values[9][0] == 0
    assert values[10][0] > 0
    assert method.phases[1].start == 10
    x = np.asarray(IMAGES, np.float64) / 127.5 - 1
    v = np.asarray(params["discriminator"]["v"], np.float64)
    noise = np.asarray(jax.random.normal(jax.random.fold_in(KEY, 0), x.shape), np.float64)
    real, fake = x @ v, ((x + math.exp(-2) * noise) @ KERNEL) @ v
    hinge = np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean()
    assert values[10][1] == pytest.approx(hinge, rel=1e-4)
    assert float(seen.metrics["real_accuracy"]) == pytest.approx((real > 0).mean())


@pytest.mark.parametrize("likelihood", DISTRIBUTIONS)
@pytest.mark.parametrize("said", [-1e30, 1e30])
@pytest.mark.parametrize("where", ["raw", "log_scale", "kernel"])
def test_nothing_without_bounds_makes_nan(likelihood, said, where):
    """Of the log variance of q(z | x), the scale of p(x | z), and what the decoder says."""
    given = {where: np.full((2, 2), said, np.float32) if where == "kernel" else said}
    method, params, mutable = toy(likelihood=likelihood, adversarial_weight=0.5, **given)
    (value, aux), slope = jax.jit(jax.value_and_grad(method.phases[0].loss, has_aux=True))(
        params, mutable, {"image": IMAGES}, KEY, jnp.int32(0)
    )
    found = jax.jit(method.evaluate)(params, mutable, {"image": IMAGES}, KEY)
    for leaf in jax.tree.leaves((value, aux.mutable, slope, found, aux.metrics)):
        assert np.isfinite(leaf).all()


def test_latents_come_and_go():
    method, params, mutable = toy(raw=-1.0, slope=2.0)
    model = method.phases[0].loss.args[0]
    code = kl.encode(model, params, mutable, {"image": IMAGES})
    x = np.asarray(IMAGES, np.float64) / 127.5 - 1
    np.testing.assert_allclose(code, 2 * x, atol=1e-5)
    made = kl.decode(model, params, mutable, code)
    assert made.dtype == jnp.uint8
    np.testing.assert_allclose(
        made, np.clip(np.round((2 * x @ KERNEL + 1) * 127.5), 0, 255), atol=1
    )

    samples = method.sample(params, mutable, KEY, 3, {})
    assert (samples.shape, samples.dtype) == ((3, *SHAPE), jnp.uint8)
    z = np.asarray(jax.random.normal(KEY, (3, *SHAPE)), np.float64)
    np.testing.assert_allclose(samples, np.clip(np.round((z @ KERNEL + 1) * 127.5), 0, 255), atol=1)
    shown = jax.jit(method.pictures)(params, mutable, {"image": IMAGES}, KEY)
    assert {name: value.shape for name, value in shown.items()} == {
        "reconstructions": (2, 6, *SHAPE),
        "interpolations": (3, 8, *SHAPE),
    }
    np.testing.assert_array_equal(shown["interpolations"][:, 0], made[::2])


def test_labels_are_refused():
    method, params, mutable = toy()
    with pytest.raises(ConfigError, match="the model has no such condition: leave it out"):
        method.sample(params, mutable, KEY, 2, {"label": jnp.array([0, 1])})


TINY = {
    "batch_size": 16,
    "evals.batch_size": 16,
    "duration": "40_steps",
    "optimizer.learning_rate": 3e-3,
    "autoencoder_kl.adversarial_start": "10_steps",
    "model.encoder.channels": (4,),
    "model.decoder.channels": (4,),
    "model.discriminator.channels": 4,
}


def test_both_players_train():
    run = assemble(configs.load("configs/autoencoder_kl.py:tiny", TINY), devices=jax.devices()[:1])
    assert run.method.phases[0].loss.args[0].start_step == 10
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (16, 8, 8, 1), np.uint8) // 3,
        "label": np.zeros(16, np.int32),
    }
    state = run.init()
    assert set(state.ema["0.999"]) == {"autoencoder"}
    start = jax.tree.map(np.array, state.params)
    losses, moved = [], {}
    with jax.set_mesh(run.mesh):
        batch = global_batch(data, run.mesh)
        for step in range(40):
            state, output = run.step(state, batch)
            losses.append(float(np.divide(*output.metrics["autoencoder/loss"])))
            assert int(output.skipped) == 0
            if step in (9, 39):
                changes = jax.tree.map(lambda a, b: np.abs(a - b).max(), start, dict(state.params))
                moved[step] = {name: max(jax.tree.leaves(c)) for name, c in changes.items()}
    assert losses[9] < 0.9 * losses[0]
    assert losses[39] < 0.9 * losses[9]
    assert moved[9]["autoencoder"] > 1e-3
    assert moved[9]["discriminator"] == 0
    assert moved[39]["discriminator"] > 1e-3


def test_eight_devices_play_the_game_of_one():
    """Batch norm of the discriminator and the adaptive weight see the whole batch."""
    overrides = {
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.0,
        "optimizer.learning_rate": 0.01,
        "schedule.warmup": "",
        "autoencoder_kl.adversarial_start": "",
    }
    config = configs.load("configs/autoencoder_kl.py:tiny", TINY | overrides)
    rng, states = np.random.default_rng(0), []
    data = {
        "image": rng.integers(0, 256, (16, 8, 8, 1), np.uint8),
        "label": np.zeros(16, np.int32),
    }
    for devices in (jax.devices()[:1], jax.devices()):
        run = assemble(config, devices=devices)
        with jax.set_mesh(run.mesh):
            start = run.init()
            before = jax.device_get(dict(start.params))
            state, _ = run.step(start, global_batch(data, run.mesh))
            states.append(jax.device_get((dict(state.params), dict(state.mutable))))
    chex.assert_trees_all_close(*states, rtol=1e-3, atol=1e-5)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, states[0][0])
    assert all(max(jax.tree.leaves(moved[name])) > 1e-4 for name in before)


def test_the_perceptual_network_is_read_when_a_run_begins_and_is_frozen():
    """On two devices; what is assembled before that knows its shapes without the file."""
    overrides = {"autoencoder_kl.perceptual_weight": 0.1, "autoencoder_kl.adversarial_weight": 0.0}
    config = configs.load("configs/autoencoder_kl.py:tiny", TINY | overrides)
    run = assemble(config, devices=jax.devices()[:2])
    assert {phase.trains for phase in run.method.phases} == set(run.state.opt_state)
    assert set(run.state.params) == {"autoencoder", "perceptual"}
    (path,) = packages.fetch(EFFICIENTNET_LITE0).values()
    weights = perceptual.from_torch(torch_file.read(path))
    found = put_pretrained(run.init(), *read_pretrained(run)).params["perceptual"]
    jax.tree.map(np.testing.assert_array_equal, found, weights)
    same = jax.tree.map(
        lambda a, b: a.sharding == b.sharding, found, run.state.params["perceptual"]
    )
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"likelihood": "laplas"}, r"autoencoder_kl\.likelihood='laplas'.*Nearest: laplace"),
        ({"latent_channels": 0}, r"latent_channels=0: expected at least 1"),
        ({"kl_weight": -1.0}, r"kl_weight=-1\.0: expected at least 0"),
        (
            {"adversarial_weight": float("nan")},
            r"adversarial_weight=nan: expected a number, at least 0",
        ),
        ({"percptual_weight": 1.0}, r"Nearest: perceptual_weight"),
    ],
)
def test_options_that_are_refused(keys, says):
    with pytest.raises(ConfigError, match=says):
        kl.options_from_config(ConfigDict(keys))


@pytest.mark.parametrize(
    ("keys", "shape", "dtype", "says"),
    [
        ({"autoencoder_kl.adversarial_start": "soon"}, (8, 8, 1), np.uint8, r"start='soon'"),
        (
            {"autoencoder_kl.adversarial_start": "100_percent"},
            *((8, 8, 1), np.uint8),
            r"expected fewer than all \d+ steps, or the game is never played",
        ),
        ({"autoencoder_kl.perceptual_weight": 1.0}, (8, 8, 2), np.uint8, r"has 2 channels"),
        ({}, (8, 8, 1), np.float32, r"set dataset\.dequantize=False"),
        ({}, (8,), np.uint8, r"needs 8-bit images"),
        ({"model.discriminator.layers": 3}, (8, 8, 1), np.uint8, r"too many for images"),
        ({"model.encoder.channels": (8,)}, (8, 8, 1), np.uint8, r"decoded to shape \(16, 16, 1\)"),
        ({"model.encoder.channels": ()}, (8, 8, 1), np.uint8, r"one width per level"),
        ({"model.decoder.blocks": 0}, (8, 8, 1), np.uint8, r"decoder\.blocks=0: expected at least"),
        ({}, (9, 8, 1), np.uint8, r"model\.encoder\.channels: images of 9 x 8 cannot be halved 1"),
        ({"model.network": "autoencoder_lk"}, (8, 8, 1), np.uint8, r"Nearest: autoencoder_kl"),
    ],
)
def test_what_cannot_be_built_is_refused(keys, shape, dtype, says):
    config = configs.load("configs/autoencoder_kl.py:tiny", keys)
    spec = images(shape, dtype, train=64)
    with pytest.raises(ConfigError, match=f"(?i){says}"):
        kl.build(config, spec)


@pytest.mark.parametrize(("start", "found"), [("25_percent", 75), ("1_epochs", 4), ("", 0)])
def test_the_game_begins_after_a_duration(start, found):
    config = configs.load("configs/autoencoder_kl.py:tiny", {"batch_size": 16})
    config.autoencoder_kl.adversarial_start = start
    method = kl.build(config, images((8, 8, 1), train=64))
    assert method.phases[1].loss.args[0].start_step == found
