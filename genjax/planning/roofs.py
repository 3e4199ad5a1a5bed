"""What a device can do at most: known of a chip, measured of any other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genjax.planning import chips
from genjax.planning.chips import Topology
from genjax.training import memory

SIDE = 1024  # of the matrices that are multiplied
# JAX takes this share of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
ALLOCATED = 0.75
BYTES = 2**27  # of what all devices copy
SECONDS = 0.3  # that each measurement takes at least


class Roof(NamedTuple):
    """The most that one device can do.

    Attributes:
      flops_per_second: of products.
      hbm_bytes_per_second: of its memory.
      hbm_bytes: capacity; 0 if unknown.
      inside: size of a group of devices -> bytes/s that each can send to the others, without the
        network.
      across: the same over the network, of a group and the islands that it spans.
      island: device -> the number of its slice, or of a GPU's host: inside there is no network.
      together: devices of one island.
      measured: whether this was measured here and now.
    """

    flops_per_second: float
    hbm_bytes_per_second: float
    hbm_bytes: int
    inside: Callable[[int], float]
    across: Callable[[int, int], float]
    island: Callable[[jax.Device], int]
    together: int
    measured: bool = False


def of_topology(topology: Topology, precision: str) -> Roof:
    """The makers' peaks for products of a type."""
    chip = topology.chip

    def island(device: jax.Device) -> int:
        if chip.kind == "gpu":
            return device.id // topology.island
        return getattr(device, "slice_index", 0)  # a single slice has none

    return Roof(
        chip.bfloat16 if precision == "bfloat16" else chip.float32,
        chip.hbm_bytes_per_second,
        int(chip.hbm_bytes * (ALLOCATED if chip.kind == "gpu" else 1)),
        topology.inside,
        topology.across,
        island,
        topology.island,
    )


def here(devices: list[jax.Device]) -> Topology | None:
    """The topology of devices of this machine or cluster; None of a kind that is not known."""
    chip = chips.of_device(devices[0].device_kind)
    if chip is None:
        return None
    if chip.kind == "gpu":
        hosts = len({device.process_index for device in devices})
        return Topology(chip, (hosts, len(devices) // hosts))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    sides = np.array([device.coords for device in devices]).max(0) + 1
    return Topology(chip, tuple(map(int, sides[: chip.dimensions])), slices)


def measured(mesh: Mesh, precision: str) -> Roof:
    """What the devices here do when all of them work: a product, a copy, an all-gather."""
    count, dtype = mesh.devices.size, jnp.dtype(precision)
    spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    whole = NamedSharding(mesh, PartitionSpec())

    def products(x: jax.Array) -> jax.Array:
        return jnp.einsum("dij,djk->dik", x, x, preferred_element_type=jnp.float32)

    matrices = jnp.ones((count, SIDE, SIDE), dtype, device=spread)
    numbers = jnp.ones((BYTES // 4 // count * count,), jnp.float32, device=spread)
    with jax.set_mesh(mesh):
        product = _seconds(jax.jit(products), matrices)
        copy = _seconds(jax.jit(lambda x: x + 1), numbers)
        gather = _seconds(jax.jit(lambda x: x, out_shardings=whole), numbers)
    own = numbers.nbytes / count

    def sent(*_: int) -> float:
        return own * (count - 1) / gather if count > 1 else own / copy

    return Roof(
        2 * SIDE**3 / product,
        2 * own / copy,
        memory.of_device(),
        sent,
        sent,
        lambda device: device.process_index,
        jax.local_device_count(),
        measured=True,
    )


def _seconds(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """The least time of a call, of as many as fill `SECONDS`."""
    jax.block_until_ready(function(x))
    least, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(function(x))
        least = min(least, time.perf_counter() - start)
    return least
