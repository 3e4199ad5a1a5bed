"""Devices that are not there, for which JAX compiles ahead of time.

libtpu compiles for TPUs, the plugin jax-cuda12-plugin for GPUs; both are in the extra `plan`.
Nothing can run on such devices, and no array can be put there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from contextlib import suppress
from typing import Any

import jax
from jax.experimental import topologies

from genjax.checks import ConfigError, first_line
from genjax.planning.chips import Topology
from genjax.planning.gpus import target_config

# What keeps libtpu from asking the machine which TPUs it has.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
CUDA = ("jax-cuda12-plugin", "jax-cuda12-pjrt")


def compute_on_cpu() -> None:
    """Leaves the accelerators of this machine alone; to be called before JAX's backend starts."""
    jax.config.update("jax_platforms", "cpu")


def devices(topology: Topology) -> list[jax.Device]:
    """The devices of a topology, none of which has to be here.

    Raises:
      ConfigError: the compiler for them is not installed, or knows no such topology.
    """
    return _tpus(topology) if topology.chip.kind == "tpu" else _gpus(topology)


def _tpus(topology: Topology) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology={topology.name}: libtpu, which compiles for TPUs, is not installed. "
            "Install the extra plan: pip install 'genjax-models[plan]', or start with "
            "GENJAX_EXTRAS=plan launch/local.sh."
        )
    for name, value in {**ALONE, "TPU_ACCELERATOR_TYPE": f"{topology.chip.name}-8"}.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.name == "v4":  # its two cores as one device, as in other chips
        options["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--topology={topology.name} --slices={topology.slices}: libtpu has no such topology "
            f"({first_line(error, 200)}). Give one that can be rented, such as v5e:4x4, v5e:16x16, "
            "v5p:8x8x8 or v6e:16x16."
        ) from error
    return list(found.devices)


def _gpus(topology: Topology) -> list[jax.Device]:
    versions = {}
    for package in CUDA:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    if set(versions.values()) != {jax.__version__} or len(versions) < len(CUDA):
        here = ", ".join(f"{name} {version}" for name, version in versions.items()) or "neither"
        exact = " ".join(f"{package}=={jax.__version__}" for package in CUDA)
        raise ConfigError(
            f"--topology={topology.name}: compiling for GPUs takes jax-cuda12-plugin and "
            f"jax-cuda12-pjrt of jax's own version ({here} installed, jax {jax.__version__}). "
            f"Install the extra plan, or: pip install {exact}."
        )
    hosts, per_host = topology.shape
    try:
        found = topologies.get_topology_desc(
            platform="cuda",
            target_config=target_config(topology.chip),
            topology=f"1x{hosts}x{per_host}",
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"--topology={topology.name}: XLA cannot compile for it ({first_line(error, 200)})."
        ) from error
    return list(found.devices)
