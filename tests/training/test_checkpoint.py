"""Checkpoints: exact, atomic, the right ones kept, and never of the wrong model."""

import hashlib
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from genjax import config as configs
from genjax.config import ConfigError
from genjax.train_state import TrainState
from genjax.training.checkpoint import Checkpoints, digest, digests


def make_state(step=0, width=8, scale=1.0):
    params = {"net": {"kernel": scale * jnp.arange(16.0 * width).reshape(16, width)}}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state={"net": optax.adam(1e-3).init(params["net"])},
        mutable={"net": {"count": jnp.int32(step)}},
        ema={"0.9": params},
        key=jax.random.key(step),
    )


def abstract(state, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding if x.ndim else _whole(sharding)
        ),
        state,
    )


def _whole(sharding):
    return NamedSharding(sharding.mesh, PartitionSpec()) if hasattr(sharding, "mesh") else sharding


def opened(folder, **options):
    config = configs.base()
    config.checkpoint.update(options)
    return Checkpoints(folder, config)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    state = make_state(7)
    checkpoints = opened(tmp_path)
    checkpoints.save(state, 7, {})
    checkpoints.wait()
    found = Checkpoints(tmp_path).restore(abstract(state))
    chex.assert_trees_all_equal(found, state)
    assert digest(digests(found)) == digest(digests(state))


def test_restores_onto_another_mesh(tmp_path):
    state = make_state(3)
    checkpoints = opened(tmp_path)
    checkpoints.save(state, 3, {})
    checkpoints.wait()
    mesh = Mesh(np.array(jax.devices()), ("fsdp",), axis_types=(AxisType.Auto,))
    found = checkpoints.restore(abstract(state, NamedSharding(mesh, PartitionSpec("fsdp"))))
    assert found.params["net"]["kernel"].sharding.shard_shape((16, 8)) == (2, 8)
    assert digest(digests(found)) == digest(digests(state))


def test_keeps_the_newest_and_the_best(tmp_path):
    checkpoints = opened(tmp_path, keep=2, best="eval/loss", mode="min")
    for step, loss in [(1, 5.0), (2, 1.0), (3, 3.0), (4, None), (5, 4.0), (6, None)]:
        checkpoints.save(make_state(step), step, {} if loss is None else {"eval/loss": loss})
        checkpoints.wait()
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [2, 5, 6]
    checkpoints = opened(tmp_path, keep=2, best="eval/loss", mode="min")  # resumed
    for step, loss in [(7, 1.5), (8, 2.0), (9, 2.0)]:
        checkpoints.save(make_state(step), step, {"eval/loss": loss})
        checkpoints.wait()
    assert checkpoints.steps() == [2, 8, 9]


def test_the_best_can_be_the_largest(tmp_path):
    checkpoints = opened(tmp_path, keep=1, best="eval/score", mode="max")
    for step, score in [(1, 0.1), (2, 0.9), (3, 0.5)]:
        checkpoints.save(make_state(step), step, {"eval/score": score})
        checkpoints.wait()
    assert checkpoints.steps() == [2, 3]


def test_the_early_stop_metric_is_best_too_and_nan_is_never_best(tmp_path):
    config = configs.base()
    config.checkpoint.keep = 1
    config.early_stop.update({"metric": "eval/score", "mode": "max"})
    checkpoints = Checkpoints(tmp_path, config)
    for step, score in [(1, 0.1), (2, 0.9), (3, float("nan")), (4, 0.5), (5, float("inf"))]:
        checkpoints.save(make_state(step), step, {"eval/score": score})
        checkpoints.wait()
    assert checkpoints.steps() == [2, 5]
    assert Checkpoints(tmp_path).best(config) == 2
    with pytest.raises(ConfigError, match="kept no best"):
        checkpoints.best(configs.base())


def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(make_state(4), 4, {})
    checkpoints.wait()
    for file in (tmp_path / "checkpoints" / "4" / "state").rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(b"damaged")
    with pytest.raises(OSError, match=r"checkpoints/4"):
        Checkpoints(tmp_path).restore(abstract(make_state(4)))


def test_a_checkpoint_cut_short_is_never_picked_up(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(make_state(4), 4, {})
    checkpoints.wait()
    checkpoints.close()
    whole = tmp_path / "checkpoints" / "4"
    torn = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp"
    shutil.copytree(whole, torn)
    (torn / "commit_success.txt").unlink()
    assert Checkpoints(tmp_path).latest() == 4
    checkpoints = opened(tmp_path)
    assert checkpoints.latest() == 4
    chex.assert_trees_all_equal(checkpoints.restore(abstract(make_state())), make_state(4))


def test_another_model_is_refused_with_the_arrays_that_differ(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(make_state(1), 1, {})
    checkpoints.wait()
    with pytest.raises(
        ConfigError, match=r"params/net/kernel: saved \(16, 8\), expected \(16, 4\)"
    ):
        checkpoints.restore(abstract(make_state(width=4)))


def test_no_checkpoint_and_no_such_step_say_so(tmp_path):
    checkpoints = opened(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint"):
        checkpoints.restore(abstract(make_state()))
    checkpoints.save(make_state(1), 1, {})
    checkpoints.wait()
    with pytest.raises(ConfigError, match=r"step 5 \(there are: \[1\]\)"):
        checkpoints.restore(abstract(make_state()), 5)


def test_partial_restore_follows_the_map(tmp_path):
    source = make_state(9, scale=2.0)
    source = source.replace(ema={"0.9": jax.tree.map(lambda p: p + 0.5, source.params)})
    checkpoints = opened(tmp_path)
    checkpoints.save(source, 9, {})
    checkpoints.wait()
    fresh = make_state(0)
    params = {"student": fresh.params["net"], "head": {"bias": jnp.full(3, 7.0)}}
    averaged = {"student": params["student"]}  # the head has no average
    fresh = fresh.replace(params=params, mutable={}, ema={"0.9": averaged})
    mapping = ((r"^params/student/(.*)$", r"ema/0.9/net/\1"),)
    found, taken = Checkpoints(tmp_path).restore_into(fresh, mapping)
    assert taken == ["params/student/kernel"]
    expected = {"student": source.ema["0.9"]["net"], "head": params["head"]}
    chex.assert_trees_all_equal(found.params, expected)
    chex.assert_trees_all_equal(found.ema["0.9"], {"student": expected["student"]})
    assert found.step == 0


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (((r"^params/(.*)$", r"params/absent/\1"),), r"params/absent/net/kernel, which is absent"),
        (((r"^nothing$", r"x"),), r"matches no parameter"),
        (((r"^params/net/kernel$", r"mutable/net/count"),), r"mutable/net/count, which is \(\)"),
    ],
)
def test_a_wrong_map_is_refused(tmp_path, mapping, message):
    checkpoints = opened(tmp_path)
    checkpoints.save(make_state(9), 9, {})
    checkpoints.wait()
    with pytest.raises(ConfigError, match=message):
        Checkpoints(tmp_path).restore_into(make_state(0), mapping)


def test_digests_are_of_dtype_shape_and_bytes():
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    found = digests({"a": jnp.asarray(array)})
    assert found == {"a": hashlib.sha256(b"float32(2, 3)" + array.tobytes()).hexdigest()}
    assert digest(found) == hashlib.sha256(f"a {found['a']}\n".encode()).hexdigest()
    assert digests({"a": jnp.asarray(array.reshape(3, 2))}) != found
