"""The digest of a state: what it is of, and that no sharding changes it."""

import hashlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genjax.training import digests as module
from genjax.training.digests import digests, own_digests

ROWS = np.random.default_rng(0).normal(size=(16, 6, 8)).astype(np.float32)


def expected(array):
    head = f"{array.dtype.name}{array.shape or (1,)}"
    return hashlib.sha256(head.encode() + array.tobytes()).hexdigest()


def mesh():
    axes = ("data", "fsdp", "tensor")
    return jax.make_mesh((2, 2, 2), axes, (AxisType.Auto,) * 3)


@pytest.mark.parametrize(
    "spec",
    [
        (),
        ("fsdp",),
        (("data", "fsdp"), None, "tensor"),
        (None, None, ("fsdp", "tensor")),
        ("tensor",),
    ],
    ids=str,
)
@pytest.mark.parametrize("block", [2**26, 1000, 100, 7])
def test_sharding_and_blocks_do_not_change_it(spec, block):
    """Blocks of all, of some rows, of a part of a row, and of one element."""
    placed = jax.device_put(ROWS, NamedSharding(mesh(), PartitionSpec(*spec)))
    with jax.set_mesh(mesh()):
        assert digests({"a": placed}, block) == {"a": expected(ROWS)}


def test_every_kind_of_array_has_one():
    key = jax.random.key(3)
    state = {
        "none": jnp.zeros((0, 4)),
        "scalar": jnp.int32(5),
        "half": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
        "key": key,
    }
    found = digests(state, block=4)
    for name in ("none", "scalar", "half"):
        assert found[name] == expected(np.asarray(state[name]))
    assert found["key"] == expected(np.asarray(jax.random.key_data(key)))
    changed = digests(state | {"half": state["half"].at[1, 2].set(9)}, block=4)
    assert {name for name in found if found[name] != changed[name]} == {"half"}


class Spread:
    """An array of which another process has a part, as far as digests look at it."""

    dtype, shape, is_fully_addressable = ROWS.dtype, ROWS.shape, False

    def __init__(self, replicated):
        self.is_fully_replicated = replicated
        part = {"index": (slice(None),) * 3, "data": jnp.asarray(ROWS), "replica_id": 1}
        self.addressable_shards = [types.SimpleNamespace(**part)]


def test_a_process_digests_what_it_has_whole_and_waits_for_no_other(monkeypatch):
    monkeypatch.delattr(module, "_over_processes")
    placed = jax.device_put(ROWS, NamedSharding(mesh(), PartitionSpec("fsdp")))
    with jax.set_mesh(mesh()):
        found = own_digests({"here": placed, "whole": Spread(True), "part": Spread(False)})
    assert found == dict.fromkeys(("here", "whole"), expected(ROWS))


def test_no_more_than_a_block_comes_to_the_host(monkeypatch):
    sizes = []
    read = module._cut

    def watched(data, start, shape):
        sizes.append(int(np.prod(shape)) * data.dtype.itemsize)
        return read(data, start, shape)

    monkeypatch.setattr(module, "_cut", watched)
    placed = jax.device_put(ROWS, NamedSharding(mesh(), PartitionSpec("fsdp")))
    digests({"a": placed}, block=500)
    assert max(sizes) <= 500
    assert sum(sizes) == ROWS.nbytes
