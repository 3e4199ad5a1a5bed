"""Which type a device computes in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from genjax.nn.cpu import onednn
from genjax.parallel.distributed import largest


def native() -> str:
    """The type of products that pays on the devices here, of all processes.

    "bfloat16" on TPUs, on GPUs from NVIDIA's Ampere on and AMD's, and on CPUs with AMX; on those
    with AVX512-BF16 where oneDNN is in use; else "float32". Processes agree: one that has to do
    without bfloat16 decides for all.
    """
    found = _native(jax.devices()[0])
    if jax.process_count() > 1 and largest(int(found == "float32")):
        return "float32"
    return found


def _native(device: jax.Device) -> str:
    if device.platform == "cpu":
        return "bfloat16" if onednn.multiplies(jnp.bfloat16) else "float32"
    capability = getattr(device, "compute_capability", None)  # NVIDIA's, such as "8.0"
    old = device.platform in ("gpu", "cuda") and _number(capability) < 8
    return "float32" if old else "bfloat16"


def settled(config: ConfigDict) -> ConfigDict:
    """`config`, its precision that of the devices here if it is "auto"."""
    return config if config.precision != "auto" else with_precision(config, native())


def with_precision(config: ConfigDict, precision: str) -> ConfigDict:
    """A copy of `config` with that precision."""
    config = config.copy_and_resolve_references()
    config.precision = precision
    return config


def _number(capability: object) -> float:
    try:
        return float(str(capability))
    except ValueError:
        return 8.0  # of another maker
