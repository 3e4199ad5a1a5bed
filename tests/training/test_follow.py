"""Networks that follow others: the averages in closed form, where they lie, and what is wrong."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.method import Aux, DataSpec, Field, Follow, Method, Phase
from genjax.parallel import rules
from genjax.parallel.mesh import global_batch
from genjax.training import follow
from genjax.training.assemble import assemble, put_pretrained
from genjax.training.checkpoint import Checkpoints

SHAPE = (16, 8)


def vectors():
    image = Field("real", (16,), np.dtype(np.float32))
    return DataSpec("toy", {"image": image}, "image", {"train": 64})


def descend(params, mutable, batch, key, step):
    pull = jnp.square(params["target"]["kernel"] - 1).mean()  # what follows can be read
    return jnp.square(batch["image"] @ params["net"]["kernel"] - pull).mean(), Aux({}, {})


def made(follows, init=None, **overrides):
    """The run of one network, and what follows it."""
    config = configs.override(configs.base(), {"batch_size": 8, "mesh.fsdp": 4} | overrides)
    config.ema.decay = ()
    params = init or (lambda key: {"net": {"kernel": jax.random.normal(key, SHAPE)}})
    method = Method(
        init=lambda key, batch: (params(key), {}),
        phases=(Phase("net", descend),),
        evaluate=None,
        sample=None,
        rules=((r"/net/.*kernel$", rules.fsdp),),  # says nothing of the follower
        follows=follows,
    )
    return assemble(config, vectors(), method)


def trajectory(run, steps):
    """The states before the first and after each step."""
    rng = np.random.default_rng(0)
    state, found = run.init(), []
    with jax.set_mesh(run.mesh):
        found.append(jax.device_get(state.params))
        for _ in range(steps):
            batch = {"image": rng.normal(size=(8, 16)).astype(np.float32)}
            state, _ = run.step(state, global_batch(batch, run.mesh))
            found.append(jax.device_get(state.params))
    return state, found


def test_it_begins_as_a_copy_and_is_the_average_of_its_source():
    _, found = trajectory(made({"target": Follow("net", 0.75)}), 5)
    chex.assert_trees_all_equal(found[0]["target"], found[0]["net"])
    weights = [0.75**5, *(0.25 * 0.75 ** (5 - i) for i in range(1, 6))]
    nets = [params["net"]["kernel"].astype(np.float64) for params in found]
    expected = sum(w * net for w, net in zip(weights, nets, strict=True))
    np.testing.assert_allclose(found[5]["target"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert np.abs(nets[5] - nets[0]).max() > 1e-3


def test_a_decay_of_0_copies_every_nth_step_exactly():
    _, found = trajectory(made({"target": Follow("net", 0.0, every=3)}), 7)
    for step, source in enumerate([0, 0, 0, 3, 3, 3, 6, 6]):
        chex.assert_trees_all_equal(found[step]["target"], found[source]["net"])
    assert not np.array_equal(found[3]["net"]["kernel"], found[0]["net"]["kernel"])


def test_a_decay_can_be_a_function_of_the_step():
    rule = {"target": Follow("net", lambda step: 1.0 - 1.0 / (step + 2.0))}
    _, found = trajectory(made(rule), 4)  # the mean of all parameters so far
    mean = np.mean([params["net"]["kernel"] for params in found], axis=0)
    np.testing.assert_allclose(found[4]["target"]["kernel"], mean, rtol=1e-5, atol=1e-6)


def test_it_lies_on_the_mesh_as_its_source_and_has_no_optimizer(monkeypatch):
    monkeypatch.setattr(rules, "MIN_SHARDED_SIZE", 1)
    run = made({"target": Follow("net", 0.5)})
    state = run.init()
    shardings = [state.params[name]["kernel"].sharding for name in ("net", "target")]
    assert shardings[0] == shardings[1]
    assert not shardings[0].is_fully_replicated
    assert set(state.opt_state) == {"net"}
    leaves = (state.params[name]["kernel"].addressable_shards for name in ("net", "target"))
    held = [{shard.data.unsafe_buffer_pointer() for shard in shards} for shards in leaves]
    assert not held[0] & held[1]  # the step gives its arguments away


def test_it_is_a_copy_of_what_a_run_begins_with(tmp_path):
    """Of another run's networks, and of pretrained ones; that run need not have the follower."""
    alone = made({}, init=lambda key: {"net": {"kernel": jnp.full(SHAPE, 3.0)}})
    checkpoints = Checkpoints(tmp_path, alone.config)
    checkpoints.save(alone.init(), 0, {})
    checkpoints.wait()
    checkpoints.close()
    run = made({"target": Follow("net", 0.5)})
    state, taken = Checkpoints(tmp_path).restore_into(
        run.init(), run.config.checkpoint.init_map, run.method.follows
    )
    assert taken == ["params/net/kernel"]
    for begun in (state, put_pretrained(run.init(), {"net": {"kernel": np.full(SHAPE, 3.0)}}, {})):
        params = follow.begin(run.method.follows, begun.params, begun.opt_state)
        assert (np.asarray(params["target"]["kernel"]) == 3.0).all()


def two(key):
    return {"net": {"kernel": jnp.zeros(SHAPE)}, "target": {"kernel": jnp.ones(SHAPE)}}


def test_what_init_makes_of_it_does_not_count():
    params = made({"target": Follow("net", 0.5)}, init=two).init().params
    assert (np.asarray(params["target"]["kernel"]) == 0.0).all()


@pytest.mark.parametrize(
    ("follows", "init", "message"),
    [
        ({"target": Follow("nett", 0.5)}, None, r"source of the follower 'target'='nett'.*net"),
        (
            {"target": Follow("net", 0.5), "late": Follow("target", 0.5)},
            None,
            r"source of the follower 'late'='target': expected one of net\.",
        ),
        ({"net": Follow("target", 0.5)}, two, r"'net' follows 'target', and a phase trains it"),
        (
            {"target": Follow("net", 0.5)},
            lambda key: two(key) | {"target": {"kernel": jnp.ones((3, 2))}},
            r"'target' has other arrays than 'net'.*\(3, 2\).*\(16, 8\)",
        ),
        ({"target": Follow("net", 1.0)}, None, r"decay of the follower 'target'=1\.0: expected"),
        ({"target": Follow("net", 0.5, every=0)}, None, r"'target'=0: expected at least 1"),
    ],
)
def test_what_cannot_be_followed_is_refused(follows, init, message):
    with pytest.raises(ConfigError, match=message):
        made(follows, init)
