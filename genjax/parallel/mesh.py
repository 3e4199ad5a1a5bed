"""The device mesh: axes `data`, `fsdp`, `sequence` and `tensor`.

A batch is split over data x fsdp; devices that differ in `sequence` or `tensor` alone hold the same
rows of it, and networks split the length over `sequence` and heads and hidden units over `tensor`.
The axes stand in the order of their traffic: the last one gets the fastest links.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from genjax.config import ConfigError

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(config: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of `config.mesh`; one axis may be -1, which takes all remaining devices.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or a batch size is not
        divisible by data x fsdp.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.mesh[axis] for axis in AXES]
    setting = f"config.mesh={dict(zip(AXES, sizes, strict=True))}"
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise ConfigError(f"{setting}: every axis must be at least 1, and at most one may be -1.")
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        advice = "Set one of them to -1."
        if -1 in sizes:
            rest = " x ".join(axis for axis, s in zip(AXES, sizes, strict=True) if s != -1)
            divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
            advice = f"Set {rest} to a divisor: {', '.join(map(str, divisors))}."
        raise ConfigError(
            f"{setting} does not fit {len(devices)} devices: the axes must multiply to "
            f"{len(devices)}. {advice}"
        )
    split = sizes[0] * sizes[1]
    for key, size in (
        ("batch_size / config.accumulation", config.batch_size // config.accumulation),
        ("evals.batch_size", config.evals.batch_size),
    ):
        if size % split:
            raise ConfigError(
                f"config.{key}={size} is not divisible by the {split} devices that share a batch "
                f"(mesh data={sizes[0]} x fsdp={sizes[1]}). Use a multiple of {split}, or fewer "
                "devices on these axes."
            )
    return Mesh(arranged(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arranged(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array of these sizes, one axis of it for each of `AXES`.

    CPUs keep their order. Axes of a TPU follow its links. If the devices are of several slices
    (parts that a slower network connects: a GPU's node, a TPU's slice), the slices differ in their
    place along `data`; if there are more slices than that, along the next axis too.

    Raises:
      ConfigError: the slices have different numbers of devices, or divide no axis.
    """
    if devices[0].platform == "cpu":
        return np.asarray(devices).reshape(sizes)
    counts = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"the {len(counts)} slices have different numbers of devices: {dict(counts)}. Use "
            "slices of one size."
        )
    across, rest = [], len(counts)
    for size in sizes:
        across.append(math.gcd(size, rest))
        rest //= across[-1]
    if rest > 1:
        raise ConfigError(
            f"config.mesh={dict(zip(AXES, sizes, strict=True))}: {len(counts)} slices have to "
            f"divide its axes. Set config.mesh.data={len(counts)}."
        )
    inside = [size // slices for size, slices in zip(sizes, across, strict=True)]

    def arrange(split: bool) -> np.ndarray:
        if len(counts) > 1:
            return mesh_utils.create_hybrid_device_mesh(
                inside, across, devices, allow_split_physical_axes=split
            )
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=split)

    try:
        return arrange(split=False)
    except NotImplementedError:  # an axis fills no whole sides of the torus
        return arrange(split=True)


def platform() -> str:
    """The platform of the mesh in use (`jax.set_mesh`), whose devices need not be here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def fitted(config: ConfigDict, count: int) -> ConfigDict:
    """`config` with its mesh changed to fit `count` devices, if it does not fit them.

    `tensor`, `sequence` and `fsdp` become divisors of their old sizes and of the remaining devices;
    the axis that was -1, or else `data`, takes the rest. If `make_mesh` refuses a mesh for another
    reason, it is not changed.
    """
    sizes = {axis: config.mesh[axis] for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1] or ["data"]
    known = math.prod(size for size in sizes.values() if size != -1)
    fits = count % known == 0 if -1 in sizes.values() else count == known
    if fits or len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        return config
    rest = count
    for axis in reversed(AXES):
        sizes[axis] = -1 if axis in free else math.gcd(sizes[axis], rest)
        rest //= abs(sizes[axis])
    changed = config.copy_and_resolve_references()
    changed.mesh.update(sizes)
    return changed


def fitting(size: int, examples: int, mesh: Mesh) -> int:
    """The batch size: `size`, or if there are fewer `examples`, their number rounded up to fit."""
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    return min(size, -(-max(examples, 1) // split) * split)


@functools.cache
def batch_part(mesh: Mesh) -> tuple[int, int]:
    """(i, n): this process reads part i of the n parts of a batch.

    Processes whose devices hold the same rows, because `sequence` or `tensor` spans them, read
    the same part.
    """
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    rows: dict[int, set[int]] = {}
    for device, index in NamedSharding(mesh, BATCH).devices_indices_map((split,)).items():
        rows.setdefault(device.process_index, set()).add(index[0].start or 0)
    parts = sorted({tuple(sorted(r)) for r in rows.values()})
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch as global arrays [B, ...], split over data x fsdp."""
    return _placed(batch, mesh, BATCH, 0)


def global_batches(batches: Sequence[Mapping[str, np.ndarray]], mesh: Mesh) -> dict[str, jax.Array]:
    """`global_batch` of several batches, stacked: [n, B, ...]."""
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    return _placed(stacked, mesh, PartitionSpec(None, *BATCH), 1)


def _placed(
    batch: Mapping[str, np.ndarray], mesh: Mesh, split: PartitionSpec, axis: int
) -> dict[str, jax.Array]:
    sharding = NamedSharding(mesh, split)
    _, parts = batch_part(mesh)
    shapes = {
        name: (*v.shape[:axis], v.shape[axis] * parts, *v.shape[axis + 1 :])
        for name, v in batch.items()
    }
    with jax.transfer_guard("allow"):
        return jax.make_array_from_process_local_data(sharding, dict(batch), shapes)
