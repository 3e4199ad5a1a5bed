"""A game of batch-normalised players against PyTorch's (tests/golden/make_dcgan.py)."""

from __future__ import annotations

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from specs import images

from genjax import config as configs
from genjax.methods import gan
from genjax.training import optim

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "dcgan.npz")
STEPS, BATCH, *SHAPE = GOLDEN["images"].shape
AVERAGES = ("mean", "var")


def split(prefix):
    """The golden arrays below `prefix` as (params, mutable)."""
    halves = ({}, {})
    for name in GOLDEN.files:
        path = tuple(name.split("/"))
        if path[0] == prefix:
            halves[path[-1] in AVERAGES][path[1:]] = jnp.asarray(GOLDEN[name])
    return tuple(unflatten_dict(half) for half in halves)


def test_three_steps_are_pytorchs():
    overrides = {
        "batch_size": BATCH,
        "gan.latent_dim": GOLDEN["z"].shape[-1],
        "model.generator.channels": 4,
        "model.discriminator.channels": 4,
        "optimizer.learning_rate": 2e-3,
        "optimizer.eps": 1e-4,
    }
    config = configs.load("configs/dcgan.py", {"precision": "float32"} | overrides)
    method = gan.build(config, images(SHAPE, train=BATCH))
    game = method.phases[0].loss.args[0]
    params, mutable = split("start")
    chex.assert_trees_all_equal_shapes(
        (params, mutable), jax.eval_shape(method.init, jax.random.key(0), {})
    )
    players = {"discriminator": gan.discriminator_loss, "generator": gan.generator_loss}
    optimizers = {
        name: optim.build(config, name, optim.learning_rate(config, name, STEPS, 0))
        for name in players
    }
    states = {name: optimizers[name].init(params[name]) for name in players}

    @jax.jit
    def turn(params, mutable, states, step, images, z):
        losses = []
        for (name, loss), drawn in zip(players.items(), z, strict=True):

            def apply(p, m, _, *rest, drawn=drawn, **kwargs):
                return game.generator.apply(p, m, drawn, *rest, **kwargs)

            played = game._replace(generator=game.generator._replace(apply=apply))

            def own(trained, name=name, loss=loss, played=played, params=params, mutable=mutable):
                both = {**params, name: trained}
                return loss(played, both, mutable, {"image": images}, jax.random.key(0), step)

            (value, aux), slope = jax.value_and_grad(own, has_aux=True)(params[name])
            change, state = optimizers[name].update(slope, states[name], params[name], step=step)
            params = {**params, name: optax.apply_updates(params[name], change)}
            states, mutable = {**states, name: state}, {**mutable, **aux.mutable}
            losses.append(value)
        return params, mutable, states, jnp.stack(losses)

    found = []
    for step in range(STEPS):
        params, mutable, states, losses = turn(
            params, mutable, states, step, GOLDEN["images"][step], jnp.asarray(GOLDEN["z"][step])
        )
        found.append(losses)
    np.testing.assert_allclose(np.stack(found), GOLDEN["losses"], rtol=2e-6)
    chex.assert_trees_all_close((params, mutable), split("end"), atol=1e-5)
