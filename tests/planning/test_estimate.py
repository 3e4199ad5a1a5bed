"""What a plan says of a program is what JAX and closed forms say of it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genjax.planning import flops, hlo
from genjax.planning.chips import parse
from genjax.planning.estimate import bound, read
from genjax.planning.programs import Traced, compiled, shard_bytes
from genjax.planning.roofs import measured, of_topology

NAMES = ("data", "fsdp", "tensor")


def traced(n=512):
    """A product whose right side is split over eight devices and gathered."""
    mesh = jax.make_mesh((1, 8, 1), NAMES, (AxisType.Auto,) * 3)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((8 * n, n), jnp.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((n, n), jnp.float32, sharding=rows)
    with jax.set_mesh(mesh):
        return Traced(jax.jit(jnp.dot, out_shardings=rows).trace(x, w), mesh), (x, w)


def test_memory_is_what_jax_says():
    program, given = traced()
    made = compiled(program)
    memory = made.executable.memory_analysis()
    assert memory.argument_size_in_bytes == shard_bytes(given) == 512 * 512 * 4 * (1 + 1 / 8)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert made.peak >= held
    assert made.peak <= held + memory.temp_size_in_bytes
    assert made.temporaries >= 512 * 512 * 4  # what was gathered


def test_a_roofline_is_the_closed_form_of_a_product():
    program, _ = traced()
    counted, made = flops.count(program.program.jaxpr), compiled(program)
    roof = of_topology(parse("h100:1x8"), "float32")
    found = bound(counted, 8, hlo.read(made.text), roof)
    assert counted.total == 2 * 8 * 512**3
    assert found.seconds_compute == pytest.approx(2 * 512**3 / 4.945e14)
    assert found.seconds_ici == pytest.approx(7 / 8 * 512 * 512 * 4 / 4.5e11)
    assert found.seconds_dcn == 0
    assert found.mfu_serial < found.mfu_overlapped <= 1


def test_hosts_are_islands_of_gpus():
    program, _ = traced()
    counted, made = flops.count(program.program.jaxpr), compiled(program)
    roof = of_topology(parse("h100:2x4"), "float32")
    found = bound(counted, 8, hlo.read(made.text, slice_of=lambda i: i // 4), roof)
    assert found.seconds_ici == 0
    assert found.seconds_dcn == pytest.approx(7 / 8 * 512 * 512 * 4 / 4e11)


def test_a_loop_of_unknown_length_runs_as_often_as_its_flops_say():
    def until(x, turns):
        return jax.lax.while_loop(lambda c: c[1] < turns, lambda c: (c[0] @ c[0], c[1] + 1), (x, 0))

    shapes = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    text = jax.jit(until).lower(*shapes).compile().as_text()
    once, found = hlo.read(text), read(text, lambda device: 0, 7 * 2 * 64**3)
    assert once.flops == 2 * 64**3
    assert found.flops == 7 * once.flops
    assert found.hbm_bytes > 5 * once.hbm_bytes


def test_what_the_devices_here_do_is_measured():
    mesh = jax.make_mesh((8, 1, 1), NAMES, (AxisType.Auto,) * 3)
    roof = measured(mesh, "float32")
    assert roof.measured
    assert 1e7 < roof.flops_per_second < 1e14
    assert 1e6 < roof.hbm_bytes_per_second < 1e13
    assert roof.inside(8) > 1e5
