"""Checks whether the devices can hold a run, before any of it is allocated."""

from __future__ import annotations

import os

import jax

from genjax.checks import ConfigError
from genjax.training.assemble import Assembly

GIB = 2**30


def check(run: Assembly, training: bool, available: int | None = None) -> None:
    """Refuses a run whose state, and batches in training, are larger than a device's memory.

    Gradients and activations come on top: a run that passes may still be too large.

    Args:
      run: the run to be trained or restored.
      training: whether it is to be trained, so that batches need memory too.
      available: bytes of memory of one device; by default what the device reports.

    Raises:
      ConfigError: the run does not fit.
    """
    available = of_device() if available is None else available
    state = sum(map(_bytes, jax.tree.leaves(run.state)))
    batches, batch_text, keys = 0, "", "config.model"
    if training:
        batches = sum(map(_bytes, jax.tree.leaves(run.batch))) * run.config.steps_per_dispatch
        batch_text = f" and a batch of {run.examples_per_step:,} examples {batches / GIB:,.2f} GiB"
        keys = "config.model or config.batch_size"
    if available and state + batches > available:
        raise ConfigError(
            f"the run does not fit into memory: its state (parameters, the optimizer's moments, "
            f"averages) takes {state / GIB:,.2f} GiB of each device{batch_text}, of "
            f"{available / GIB:,.2f} GiB. Make {keys} smaller, or shard the state over more "
            "devices with config.mesh.fsdp."
        )


def of_device() -> int:
    """Returns the bytes of memory of each local device; 0 if not known."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit", 0)
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Returns the bytes of the part of an array that one device holds."""
    count = 1
    for side in leaf.sharding.shard_shape(leaf.shape):
        count *= side
    return count * leaf.dtype.itemsize
