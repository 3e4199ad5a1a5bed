"""Checkpoints whose columns of queries, keys and values lie side by side."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genjax import config as configs
from genjax.config import ConfigError
from genjax.networks import dit, transformer
from genjax.nn.functional import functional
from genjax.parallel import rules
from genjax.train_state import TrainState
from genjax.training.checkpoint import Checkpoints

KEY = jax.random.key(0)


def networks():
    """A decoder with 4 heads of queries for 2 of keys, and a DiT with cross-attention."""
    body = functional(
        lambda r: transformer.Transformer(width=16, depth=2, heads=4, kv_heads=2, rngs=r)
    )
    size = {"patch_size": 2, "width": 16, "depth": 2, "heads": 2, "context_width": 3}
    picture = functional(lambda r: dit.Network((4, 4, 1), 1, **size, rngs=r))
    made = {"lm": {"body": body.init(KEY)[0]}, "denoiser": picture.init(KEY)[0]}
    draws = np.random.default_rng(0)
    return jax.tree.map(lambda p: jnp.asarray(draws.normal(size=p.shape), jnp.float32), made)


def state_of(params):
    return TrainState(
        step=jnp.int32(3),
        params=params,
        opt_state={
            name: optax.adam(1e-3).init(tree)[0]._replace(mu=tree) for name, tree in params.items()
        },
        mutable={name: {} for name in params},
        ema={"0.9": params},
        key=KEY,
    )


def as_it_was(params):
    """The parameters as they were stored: all queries, then all keys, then all values."""
    groups = {"lm": {"qkv": 2}, "denoiser": {"qkv": 1, "pair": 0}}  # queries of a head of keys
    params = jax.tree.map(np.asarray, params)
    for network, layers in groups.items():
        blocks = (params[network].get("body") or params[network])["blocks"]
        for name, group in layers.items():
            for leaf, array in blocks[name].items():
                each = array.reshape(*array.shape[:-1], group + 2, -1)
                parts = (each[..., :group, :], each[..., group, :], each[..., group + 1, :])
                flat = [part.reshape(*array.shape[:-2], -1) for part in parts]
                blocks[name][leaf] = np.concatenate(flat, axis=-1)
    return jax.tree.map(jnp.asarray, params)


def save(folder, state):
    checkpoints = Checkpoints(folder, configs.base())
    checkpoints.save(state, 3, {})
    checkpoints.close()
    return Checkpoints(folder)


def test_they_are_grouped_by_heads_as_they_are_read(tmp_path):
    """On a mesh too; in the moments and averages as well."""
    params = networks()
    state, checkpoints = state_of(params), save(tmp_path, state_of(as_it_was(params)))
    assert checkpoints.shapes(3)["params/lm/body/blocks/qkv/kernel"] == (2, 16, 32)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    placed = rules.shardings(state, dit.RULES, mesh)
    shapes = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed
    )
    found = checkpoints.restore(shapes)
    chex.assert_trees_all_equal(found, state)
    kernel = found.opt_state["lm"].mu["body"]["blocks"]["qkv"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, None, "tensor", None)

    everywhere = NamedSharding(mesh, PartitionSpec())
    for path in ("params/denoiser/blocks/pair/kernel", "ema/0.9/lm/body/blocks/qkv/bias"):
        leaf = dict(_named(state))[path]
        like = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)
        np.testing.assert_array_equal(checkpoints.read(3, {path: like})[path], leaf)

    fresh = jax.tree.map(jnp.zeros_like, state.params)
    taken, paths = checkpoints.restore_into(state_of(fresh), [(r"^params/(.*)$", r"ema/0.9/\1")])
    chex.assert_trees_all_equal(taken.params, state.params)
    assert len(paths) == len(jax.tree.leaves(state.params))


def _named(tree):
    return [(rules.path_name(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def test_other_shapes_are_refused_as_before(tmp_path):
    params = networks()
    checkpoints = save(tmp_path, state_of(as_it_was(params)))
    params["lm"]["body"]["blocks"]["qkv"]["kernel"] = jnp.zeros((2, 16, 2, 20))
    with pytest.raises(ConfigError, match=r"params/lm/body/blocks/qkv/kernel: saved \(2, 16, 32\)"):
        checkpoints.restore(state_of(params))
