"""Whole games on small networks: resume, devices, what the metrics show."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.parallel import rules
from genjax.parallel.mesh import global_batch
from genjax.parallel.rules import path_name
from genjax.training.assemble import assemble
from genjax.training.checkpoint import Checkpoints
from genjax.training.digests import digest, digests

EVERYTHING = {
    "batch_size": 16,
    "duration": "10_steps",
    "gan.loss": "hinge",
    "gan.critic_steps": 2,
    "gan.r1": 0.1,
    "gan.penalty_every": 2,
    "gan.augment": "ada",
    "gan.ada_target": -0.99,
    "gan.ada_images": 1000,
    "gan.conditioning": "projection",
    "model.discriminator.spectral_norm": True,
    "model.discriminator.norm": "none",
    "model.generator.channels": 4,
    "model.discriminator.channels": 4,
    "optimizer.networks.discriminator.learning_rate": 4e-4,
    "evals.batch_size": 16,
}


def make(devices, **overrides):
    location = "configs/dcgan.py:tiny"
    return assemble(configs.load(location, EVERYTHING | overrides), devices=devices)


def batch(run, step):
    rng = np.random.default_rng(step)
    data = {
        "image": rng.integers(0, 256, (run.examples_per_step, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, run.examples_per_step).astype(np.int32),
    }
    return global_batch(data, run.mesh)


def play(run, state, start, stop):
    outputs = []
    with jax.set_mesh(run.mesh):
        for step in range(start, stop):
            state, output = run.step(state, batch(run, step))
            outputs.append(jax.device_get(output))
    return state, outputs


@pytest.fixture(scope="module")
def run():
    return make(jax.devices()[:1])


def test_a_resumed_game_is_the_uninterrupted_one_bit_for_bit(run, tmp_path):
    """Both players, both optimizers, averages, spectral vectors and the augmentation's state."""

    def start():
        state = run.init()
        augment = {**state.mutable["augment"], "p": jnp.float32(0.5)}
        return state.replace(mutable={**state.mutable, "augment": augment})

    whole, outputs = play(run, start(), 0, 10)
    half, _ = play(run, start(), 0, 3)
    checkpoints = Checkpoints(tmp_path, run.config)
    checkpoints.save(half, 3, {})
    checkpoints.wait()
    resumed, _ = play(run, checkpoints.restore(run.state), 3, 10)
    found = digests(resumed)
    assert found == digests(whole)
    assert digest(found) != digest(digests(run.init()))
    assert any(name.startswith("mutable/augment/p") for name in found)
    assert any(name.endswith("/u") and "mutable/discriminator" in name for name in found)
    # ADA moved, the lazy phase ran every other step, and the metrics tell the players apart.
    assert float(whole.mutable["augment"]["p"]) == pytest.approx(0.5 + 256 / 1000)
    lazy = [output.metrics["discriminator_2/r1"][1] for output in outputs]
    np.testing.assert_array_equal(np.array(lazy) > 0, [True, False] * 5)
    for name in ("discriminator/real_logit", "discriminator/fake_logit", "discriminator/ada_p"):
        assert name in outputs[0].metrics
    for player in ("discriminator", "generator"):
        assert outputs[0].metrics[f"{player}/grad_norm"][0] > 0


def test_both_players_move_and_the_generator_alone_is_averaged(run):
    start = jax.tree.map(np.asarray, run.init().replace(key=0))
    state, _ = play(run, run.init(), 0, 1)
    for player in ("generator", "discriminator"):
        moved = jax.tree.map(
            lambda a, b: float(np.abs(a - b).max()), start.params[player], state.params[player]
        )
        assert max(jax.tree.leaves(moved)) > 0
    assert set(state.ema["0.999"]) == {"generator"}
    rates = {name: float(rate(0)) for name, rate in run.learning_rates.items()}
    assert rates == pytest.approx({"generator": 1e-3, "discriminator": 4e-4})


PLAIN = {
    "gan.augment": "none",
    "gan.loss": "non_saturating",
    "gan.r1": 0.0,
    "gan.critic_steps": 1,
    "gan.penalty_every": 1,
    "model.discriminator.norm": "batch",
    "model.discriminator.spectral_norm": False,
}
PENALISED = {  # gradients of gradients, a phase under a condition, power iteration, packs
    "gan.augment": "none",
    "gan.r1": 1.0,
    "gan.packing": 2,
    "gan.conditioning": "concatenation",
}


@pytest.mark.parametrize("overrides", [PLAIN, PENALISED], ids=["batch norm", "penalties"])
def test_eight_devices_play_the_game_of_one(overrides, monkeypatch):
    """Batch norm's statistics are those of the whole batch, wherever its rows are."""
    monkeypatch.setattr(rules, "MIN_SHARDED_SIZE", 1)  # so that small arrays are split as well
    overrides = {
        **overrides,
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.0,
        "optimizer.learning_rate": 0.1,
        "optimizer.networks.discriminator.learning_rate": 0.1,
    }
    states = []
    for devices, layout in (
        (jax.devices()[:1], {}),
        (jax.devices(), {"mesh.data": 2, "mesh.fsdp": 4}),
    ):
        one = make(devices, **overrides, **layout)
        leaves = jax.tree.leaves(one.state.params["discriminator"])
        assert any(not leaf.sharding.is_fully_replicated for leaf in leaves) == bool(layout)
        state, _ = play(one, one.init(), 0, 1)
        states.append(jax.tree.map(np.asarray, state.replace(key=0)))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(states[0]), jax.tree.leaves(states[1]), strict=True
    ):
        np.testing.assert_allclose(b, a, atol=1e-5, rtol=1e-3, err_msg=path_name(path))


def test_samples_have_the_labels_asked_for_and_packs_judge_together(run):
    state = run.init()
    params = state.params
    labels = np.array([3, 3, 7])

    @jax.jit
    def draw(labels):
        return run.method.sample(params, state.mutable, jax.random.key(0), 3, {"label": labels})

    samples, other = (np.asarray(draw(x)) for x in (labels, np.array([3, 4, 7])))
    assert samples.dtype == np.uint8
    assert not np.array_equal(samples[1], other[1])
    np.testing.assert_array_equal(samples[[0, 2]], other[[0, 2]])
    packed = make(
        jax.devices()[:1],
        **{"gan.packing": 4, "gan.conditioning": "concatenation", "gan.augment": "diffaugment"},
    )
    state, outputs = play(packed, packed.init(), 0, 1)
    assert np.isfinite(outputs[0].metrics["discriminator/loss"]).all()
    judged = jax.jit(packed.method.evaluate)
    total, weight = judged(state.params, state.mutable, batch(packed, 0), jax.random.key(0))[
        "real_logit"
    ]
    np.testing.assert_array_equal(weight, [1, 0, 0, 0] * 8)  # eight packs, eight logits
    assert (np.asarray(total) != 0).sum() == 8
