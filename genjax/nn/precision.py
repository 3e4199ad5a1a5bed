"""The number type that devices compute in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from genjax.nn.cpu import onednn
from genjax.parallel.distributed import largest


def native() -> str:
    """The type in which products are fast on the devices of all processes.

    "bfloat16" on TPUs, on NVIDIA's GPUs since Ampere, on AMD's GPUs, on CPUs with AMX, and on CPUs
    with AVX512-BF16 if oneDNN is in use; else "float32". All processes return the same: "float32"
    if it is the type of any of them.
    """
    precision = _native(jax.devices()[0])
    if jax.process_count() > 1 and largest(int(precision == "float32")):
        return "float32"
    return precision


def _native(device: jax.Device) -> str:
    if device.platform == "cpu":
        return "bfloat16" if onednn.multiplies(jnp.bfloat16) else "float32"
    capability = getattr(device, "compute_capability", None)  # NVIDIA's, such as "8.0"
    old = device.platform in ("gpu", "cuda") and _number(capability) < 8
    return "float32" if old else "bfloat16"


def settled(config: ConfigDict) -> ConfigDict:
    """`config`, with the precision of the devices here if it is "auto"."""
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
        return 8.0  # not an NVIDIA GPU
