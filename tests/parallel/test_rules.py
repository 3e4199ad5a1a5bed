"""Sharding rules and the mesh."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from genjax import config as configs
from genjax.config import ConfigError
from genjax.parallel import rules
from genjax.parallel.mesh import AXES, arranged, batch_part, fitted, global_batch, make_mesh


def mesh(data=2, fsdp=2, tensor=2):
    devices = np.array(jax.devices()[: data * fsdp * tensor]).reshape(data, fsdp, tensor)
    return Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize(
    ("tactic", "shape", "expected"),
    [
        (rules.replicate, (256, 256), ()),
        (rules.fsdp, (64, 256), (None, "fsdp")),
        (rules.fsdp, (256, 64), ("fsdp", None)),
        (rules.fsdp, (128, 128), (None, "fsdp")),
        (rules.fsdp, (4, 4), (None, None)),  # too small to be worth it
        (rules.fsdp, (9999, 1), (None, None)),  # not divisible
        (rules.tensor(-1), (3, 3, 64, 128), (None, None, "fsdp", "tensor")),
        (rules.tensor(-2), (3, 3, 64, 128), (None, None, "tensor", "fsdp")),
        (rules.tensor(-1), (3, 3, 64, 127), (None, None, "fsdp", None)),
    ],
)
def test_tactics(tactic, shape, expected):
    assert tactic(shape, mesh()) == PartitionSpec(*expected)


def test_one_rule_places_a_parameter_its_moments_and_its_average():
    tree = {
        "params": {"net": {"kernel": jnp.zeros((64, 128)), "bias": jnp.zeros(128)}},
        "opt_state": {"net": [{"mu": {"kernel": jnp.zeros((64, 128))}, "count": jnp.int32(0)}]},
        "ema": {"0.9": {"net": {"kernel": jnp.zeros((64, 128))}}},
        "step": jnp.int32(0),
        "key": jax.random.key(0),
    }
    placed = rules.shardings(
        tree, [(r"kernel$", rules.fsdp), (r"bias$", PartitionSpec("tensor"))], mesh()
    )
    kernels = [
        placed["params"]["net"]["kernel"],
        placed["opt_state"]["net"][0]["mu"]["kernel"],
        placed["ema"]["0.9"]["net"]["kernel"],
    ]
    assert {k.spec for k in kernels} == {PartitionSpec(None, "fsdp")}
    assert placed["params"]["net"]["bias"].spec == PartitionSpec("tensor")
    scalars = (placed["step"], placed["key"], placed["opt_state"]["net"][0]["count"])
    assert {s.spec for s in scalars} == {PartitionSpec()}


def test_the_first_match_wins():
    tree = {"a": {"kernel": jnp.zeros((64, 128))}}
    ordered = [(r"^a/", rules.replicate), (r"kernel$", rules.fsdp)]
    assert rules.shardings(tree, ordered, mesh())["a"]["kernel"].spec == PartitionSpec()


def test_a_leaf_that_no_rule_matches_is_refused_by_name():
    tree = {"params": {"net": {"gamma": jnp.zeros(4)}}}
    with pytest.raises(ValueError, match=r"params/net/gamma.*kernel"):
        rules.shardings(tree, [(r"kernel$", rules.fsdp)], mesh())


def test_a_spec_that_does_not_divide_is_refused_by_name():
    tree = {"net": {"kernel": jnp.zeros((3, 5))}}
    with pytest.raises(ValueError, match=r"net/kernel"):
        rules.shardings(tree, [(r"kernel$", PartitionSpec("fsdp"))], mesh())


def config_with(data=-1, fsdp=1, sequence=1, tensor=1, batch_size=64):
    config = configs.base()
    config.mesh.update({"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor})
    config.batch_size = batch_size
    return config


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, (8, 1, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, (1, 4, 1, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 1, 2)),
        ({"data": 1, "sequence": -1, "tensor": 2}, (1, 1, 4, 2)),
    ],
)
def test_one_axis_takes_what_the_others_leave(sizes, expected):
    found = make_mesh(config_with(**sizes))
    assert found.devices.shape == expected
    assert list(found.devices.flat) == jax.devices()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, r"'data': 3.*does not fit 8 devices"),
        (
            {"fsdp": 3},
            r"does not fit 8 devices.* Set fsdp x sequence x tensor to a divisor: 1, 2, 4, 8\.",
        ),
        ({"data": 1, "fsdp": 3}, r"does not fit 8 devices.* Set one of them to -1\."),
        ({"data": -1, "fsdp": -1}, r"at most one may be -1"),
        ({"data": 0}, r"at least 1"),
        ({"batch_size": 60}, r"=60 is not divisible by the 8 devices.*multiple of 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(config_with(**sizes))


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ({"data": 1, "fsdp": 2, "tensor": 2}, 1, (-1, 1, 1, 1)),
        ({"data": 1, "fsdp": 2, "tensor": 2}, 8, (-1, 2, 1, 2)),
        ({"data": 2, "fsdp": 4}, 2, (-1, 2, 1, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 4}, 6, (1, -1, 1, 2)),
        ({"data": 1, "sequence": 4, "tensor": 2}, 4, (-1, 1, 2, 2)),
        ({"data": 1, "sequence": -1, "tensor": 4}, 2, (1, 1, -1, 2)),
        ({"fsdp": 6}, 4, (-1, 2, 1, 1)),
        ({"fsdp": 2}, 8, (-1, 2, 1, 1)),  # fits
        ({"data": 2, "fsdp": 2, "tensor": 2}, 8, (2, 2, 1, 2)),
        ({"data": -1, "fsdp": -1}, 3, (-1, -1, 1, 1)),  # wrong for any number of devices
    ],
)
def test_the_mesh_of_a_run_is_made_to_fit_other_devices(sizes, count, expected):
    found = fitted(config_with(**sizes), count)
    assert tuple(found.mesh[axis] for axis in AXES) == expected
    if list(expected).count(-1) < 2:
        size = {"batch_size": 24, "evals.batch_size": 24}
        made = make_mesh(configs.override(found, size), jax.devices()[:count])
        assert made.devices.size == count


def test_a_batch_is_split_over_data_and_fsdp_in_order():
    placed = global_batch({"x": np.arange(16).reshape(8, 2)}, mesh())["x"]
    np.testing.assert_array_equal(placed, np.arange(16).reshape(8, 2))
    rows = {int(s.data[0, 0]) // 2 for s in placed.addressable_shards}
    assert rows == {0, 2, 4, 6}
    assert placed.sharding.shard_shape((8, 2)) == (2, 2)


def gpus(slices, each):
    """Devices of a cluster of GPUs, in no order."""
    devices = [
        SimpleNamespace(id=i, slice_index=i // each, platform="gpu", device_kind="H100")
        for i in range(slices * each)
    ]
    return [devices[i] for i in np.random.default_rng(0).permutation(len(devices))]


@pytest.mark.parametrize(
    ("sizes", "slices"),
    [
        ((2, 4, 1, 1), 2),
        ((4, 1, 1, 2), 2),
        ((2, 8, 1, 2), 4),  # two along data, two along fsdp
        ((1, 4, 1, 2), 1),
    ],
)
def test_slices_differ_along_data(sizes, slices):
    """So that nothing but the sum of gradients goes over the slower network."""
    count = int(np.prod(sizes))
    found = arranged(sizes, gpus(slices, count // slices))
    assert found.shape == sizes
    assert {device.id for device in found.flat} == set(range(count))
    index = np.vectorize(lambda device: device.slice_index)(found)
    assert len(set(index[:, 0, 0, 0])) == min(slices, sizes[0])
    assert (index == index[:, :, :1, :1]).all()
    if slices <= sizes[0]:
        assert (index == index[:, :1, :1, :1]).all()
    ids = np.vectorize(lambda device: device.id)(found).reshape(slices, -1)
    assert (np.diff(ids[0]) == 1).all()


def test_slices_of_different_sizes_are_refused():
    devices = sorted(gpus(2, 4), key=lambda device: device.id)[:6]
    with pytest.raises(ConfigError, match=r"different numbers of devices.*slices of one size"):
        arranged((6, 1, 1, 1), devices)


def test_devices_along_sequence_hold_the_same_rows():
    """And so processes that differ in it alone would read the same part of a batch."""
    mesh = make_mesh(config_with(data=2, sequence=2, tensor=2))
    placed = global_batch({"x": np.arange(16).reshape(8, 2)}, mesh)["x"]
    assert placed.sharding.shard_shape((8, 2)) == (4, 2)
    rows = {}
    for shard in placed.addressable_shards:
        place = np.argwhere(mesh.devices == shard.device)[0]
        rows.setdefault(int(place[0]), set()).add(shard.index[0].start)
    assert [len(found) for found in rows.values()] == [1, 1]
    assert batch_part(mesh) == (0, 1)
