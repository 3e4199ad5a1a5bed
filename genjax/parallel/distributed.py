"""Start-up of one process or many, from the environment, and agreement between them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from genjax.config import ConfigError


def initialize() -> None:
    """Joins the processes of this run, if the environment says that there are several.

    `GENJAX_COORDINATOR` (host:port), `GENJAX_PROCESS_COUNT` and `GENJAX_PROCESS_INDEX` describe
    any cluster; with `GENJAX_DISTRIBUTED=auto` JAX finds out by itself (Slurm, TPU pods, GKE,
    Open MPI). On CPUs the collectives are gloo's.

    Raises:
      ConfigError: only some of the variables are set.
    """
    names = ("GENJAX_COORDINATOR", "GENJAX_PROCESS_COUNT", "GENJAX_PROCESS_INDEX")
    values = [os.environ.get(name) for name in names]
    automatic = os.environ.get("GENJAX_DISTRIBUTED") == "auto"
    if not any(values) and not automatic:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if automatic:
        jax.distributed.initialize()
        return
    if not all(values):
        missing = [name for name, value in zip(names, values, strict=True) if not value]
        raise ConfigError(f"several processes need all of {', '.join(names)}; missing: {missing}.")
    coordinator, count, index = values
    jax.distributed.initialize(coordinator, int(count), int(index))


def several() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def accelerated() -> bool:
    """Whether JAX can run on more than CPUs here, as far as is known before its backend starts."""
    chosen = (jax.config.jax_platforms or "").split(",")[0]
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return chosen != "cpu" and bool(plugins or importlib.util.find_spec("libtpu"))


def largest(value: int) -> int:
    """The largest of the processes' values: the same answer everywhere."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.array(value)).max())


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
