"""VAEs as a config builds them: labels, devices, durations, and what cannot be built."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from specs import images

from genjax import config as configs
from genjax.config import ConfigError
from genjax.methods import vae
from genjax.training.assemble import assemble

KEY = jax.random.key(0)
FLOATS = images((1,), np.float32)
BYTES = images((8, 8, 1), classes=3)


@pytest.mark.parametrize(
    ("keys", "spec", "says"),
    [
        ({"bound": "elbow"}, BYTES, r"vae\.bound='elbow'.*Nearest: elbo"),
        ({"likelihood": "normal"}, BYTES, r"expected one of bernoulli"),
        ({"samples": 0}, BYTES, r"samples=0: expected at least 1"),
        ({"bound": "iwae", "free_bits": 0.5}, BYTES, r"no KL per dimension"),
        ({"eval_samples": 120}, BYTES, r"a multiple of vae\.eval_chunk=50"),
        ({"class_conditional": True}, FLOATS, r"toy has no labels"),
        ({}, FLOATS, r"needs 8-bit images.*float32"),
    ],
)
def test_options_that_are_refused(keys, spec, says):
    with pytest.raises(ConfigError, match=says):
        vae.options_from_config(ConfigDict(keys), spec)


def assembled(devices=None, **overrides):
    location = "configs/iwae.py:tiny"
    small = {"model.encoder.widths": (8,), "model.decoder.widths": (8,), "batch_size": 16}
    small |= {"evals.batch_size": 16, "vae.latent_dim": 3, "steps_per_dispatch": 1}
    return assemble(configs.load(location, small | overrides), devices=devices)


def batch_of(run, channels=1):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 8, 8, channels), np.uint8)
    label = rng.integers(0, 10, 16).astype(np.int32)
    return {"image": jnp.asarray(image), "label": jnp.asarray(label)}


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic", "gaussian"])
@pytest.mark.parametrize("network", ["vae_mlp", "vae_conv"])
def test_labels_reach_encoder_decoder_samples_and_pictures(likelihood, network):
    config = configs.load("configs/iwae.py:tiny", {"vae.class_conditional": True})
    with config.unlocked():
        config.vae.update({"likelihood": likelihood, "latent_dim": 2, "eval_samples": 4})
        width = {"widths": (8,)} if network == "vae_mlp" else {"channels": 4, "hidden": 8}
        config.model = ConfigDict({"network": network, "encoder": width, "decoder": width})
    spec = images((8, 8, 3), classes=10, train=16)
    method, batch = vae.build(config, spec), batch_of(None, 3)
    assert method.conditions == {"label": spec.fields["label"]}
    params, mutable = jax.jit(method.init)(KEY, batch)
    evaluate = jax.jit(method.evaluate)
    found = evaluate(params, mutable, batch, KEY)
    other = evaluate(params, mutable, {**batch, "label": (batch["label"] + 1) % 10}, KEY)
    for name in ("kl", "reconstruction", "log_likelihood"):
        assert found[name].shape == (16,)
        assert np.abs(found[name] - other[name]).min() > 0, name
    three, four = (
        method.sample(params, mutable, KEY, 5, {"label": jnp.full(5, k)}) for k in (3, 4)
    )
    assert three.dtype == jnp.uint8
    assert three.shape == (5, 8, 8, 3)
    assert (three != four).any()
    made = jax.jit(method.pictures)(params, mutable, batch, KEY)
    shapes = {name: (value.dtype, value.shape[2:]) for name, value in made.items()}
    shown = (jnp.uint8, (8, 8, 3))
    names = ("reconstructions", "interpolations", "traversals", "manifold")
    assert shapes == dict.fromkeys(names, shown) | {"latent_map": (jnp.uint8, (282, 313, 3))}


@pytest.mark.parametrize("bound", ["iwae", "dreg"])
def test_eight_devices_are_one_and_examples_stay_where_they_are(bound):
    overrides = {"vae.bound": bound, "optimizer.name": "sgd", "optimizer.momentum": 0.0}
    states, work = [], []
    for devices in (jax.devices()[:1], jax.devices()):
        run = assembled(devices, **overrides)
        with jax.set_mesh(run.mesh):
            placed = {k: jax.device_put(v, run.batch[k].sharding) for k, v in batch_of(run).items()}
            start = run.init()
            compiled = run.step.lower(start, placed).compile()
            work.append(compiled.cost_analysis()["flops"])
            states.append(jax.device_get(run.step(start, placed)[0].params))
    chex.assert_trees_all_close(*states, rtol=1e-4, atol=1e-6)
    # Each device decodes the samples of its own examples only; the optimizer's share is small.
    assert work[1] < 1.3 * work[0] / len(jax.devices())


@pytest.mark.parametrize(
    ("warmup", "found"), [("10_percent", 60), ("40_steps", 40), ("", 0), ("1_epochs", 4)]
)
def test_the_kl_grows_over_a_duration(warmup, found):
    config = configs.load("configs/vae.py:tiny", {"duration": "600_steps", "batch_size": 32})
    config.vae.kl_warmup = warmup
    method = vae.build(config, images((8, 8, 1), train=128))
    assert method.phases[0].loss.args[0].warmup_steps == found


@pytest.mark.parametrize(
    ("keys", "shape", "dtype", "says"),
    [
        ({"vae.kl_warmup": "soon"}, (8, 8, 1), np.uint8, r"config\.vae\.kl_warmup='soon'"),
        ({"vae.kl_warmup": "9999_steps"}, (8, 8, 1), np.uint8, r"at most the run's \d+ steps"),
        (
            {"model.encoder.widths": (0,)},
            (8, 8, 1),
            np.uint8,
            r"widths=\(0,\): expected at least 1",
        ),
        ({"vae.likelihood": "gaussian"}, (8, 8, 1), np.float32, r"set dataset\.dequantize=False"),
        ({"model.network": "vae_conw"}, (8, 8, 1), np.uint8, r"Nearest: vae_conv"),
    ],
)
def test_what_cannot_be_built_is_refused(keys, shape, dtype, says):
    config = configs.load("configs/vae.py:tiny", keys)
    spec = images(shape, dtype, train=64)
    with pytest.raises(ConfigError, match=says):
        vae.build(config, spec)
