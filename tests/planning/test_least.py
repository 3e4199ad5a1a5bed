"""What a layout needs at least, in closed form and against a compiled step."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genjax.method import Phase
from genjax.planning.least import of_step


def mesh(data, fsdp, tensor=1, sequence=1):
    names = ("data", "fsdp", "sequence", "tensor")
    return jax.make_mesh((data, fsdp, sequence, tensor), names, (AxisType.Auto,) * 4)


def matrix(on, *spec):
    sharding = NamedSharding(on, PartitionSpec(*spec))
    return {"net": {"kernel": jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=sharding)}}


PHASES = (Phase("net", None),)


def test_fsdp_gathers_twice_in_the_compute_type_and_scatters_gradients_once():
    on, n = mesh(1, 8), 512 * 256
    found = {f.kind: f for f in of_step(matrix(on, "fsdp"), PHASES, on, "bfloat16")}
    assert found.keys() == {"all-gather", "reduce-scatter"}
    assert found["all-gather"].bytes == 2 * 7 / 8 * 2 * n
    assert found["reduce-scatter"].bytes == 7 / 8 * 4 * n
    twice = of_step(matrix(on, "fsdp"), (Phase("net", None, repeat=2),), on, "bfloat16")
    assert sum(f.bytes for f in twice) == 2 * sum(f.bytes for f in found.values())


def test_data_parallelism_sums_gradients():
    on, n = mesh(8, 1), 512 * 256
    (found,) = of_step(matrix(on), PHASES, on, "bfloat16")
    assert (found.kind, found.axes, found.bytes) == ("all-reduce", ("data",), 2 * 7 / 8 * 4 * n)


def test_gradients_are_summed_over_the_sequence():
    on, n = mesh(1, 2, sequence=4), 512 * 256
    found = {f.kind: f for f in of_step(matrix(on, "fsdp"), PHASES, on, "bfloat16")}
    assert found["all-reduce"].axes == ("sequence",)
    assert found["all-reduce"].bytes == 2 * 3 / 4 * 4 * n / 2


def test_both_sum_the_parts_between_the_copies():
    on, n = mesh(2, 4), 512 * 256
    found = {f.kind: f for f in of_step(matrix(on, None, "fsdp"), PHASES, on, "float32")}
    assert found["all-gather"].bytes == 2 * 3 / 4 * 4 * n
    assert (found["all-reduce"].axes, found["all-reduce"].bytes) == (("data",), 4 * n / 4)


def test_what_is_split_over_tensor_is_smaller():
    on, n = mesh(1, 4, 2), 512 * 256
    found = {f.kind: f for f in of_step(matrix(on, "fsdp", "tensor"), PHASES, on, "float32")}
    assert found["all-gather"].bytes == 2 * 3 / 4 * 4 * n / 2


def test_one_device_sends_nothing():
    axes = ("data", "fsdp", "sequence", "tensor")
    one = jax.make_mesh((1, 1, 1, 1), axes, devices=jax.devices()[:1])
    assert of_step(matrix(one, "fsdp"), PHASES, one, "float32") == []
