"""Which process of its run this one is: from genjax's variables, or detected by JAX."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from jax._src import clusters  # what `jax.distributed.initialize` does before it joins

from genjax.checks import ConfigError, first_line, one_of, require

NAMES = ("GENJAX_COORDINATOR", "GENJAX_PROCESS_COUNT", "GENJAX_PROCESS_INDEX")


class Process(NamedTuple):
    """One of the processes of a run.

    Attributes:
      host: of process 0.
      port: of process 0.
      count: of processes.
      index: of this one.
      devices: the local ones that it takes; None for all that it sees.
      source: what says so, for messages.
    """

    host: str
    port: int
    count: int
    index: int
    devices: tuple[int, ...] | None
    source: str

    @property
    def coordinator(self) -> str:
        """host:port of process 0."""
        return f"{self.host}:{self.port}"


def read(patience: int) -> Process | None:
    """The process that the environment says this one is; None for a process alone.

    Args:
      patience: seconds in which the name of process 0's machine has to be known.

    Raises:
      ConfigError: only some of the variables are set, or one is invalid; there is no cluster.
    """
    values = [os.environ.get(name) for name in NAMES]
    automatic = os.environ.get("GENJAX_DISTRIBUTED", "")
    one_of("GENJAX_DISTRIBUTED", automatic, ("", "auto"))
    if automatic:
        return _detected(patience)
    if not any(values):
        return None
    if not all(values):
        missing = [name for name, value in zip(NAMES, values, strict=True) if not value]
        raise ConfigError(f"several processes need all of {', '.join(NAMES)}; missing: {missing}.")
    coordinator, count, index = values
    address = re.fullmatch(r"(.+):([0-9]{1,5})", coordinator)
    valid = address is not None and 0 < int(address[2]) < 2**16
    require(valid, NAMES[0], coordinator, "HOST:PORT of the first process")
    valid = bool(re.fullmatch(r"[0-9]{1,6}", count)) and int(count) > 0
    require(valid, NAMES[1], count, "1 or more")
    valid = bool(re.fullmatch(r"[0-9]{1,6}", index)) and int(index) < int(count)
    require(valid, NAMES[2], index, f"0 to {int(count) - 1}, as {NAMES[1]} is {count}")
    return Process(address[1], int(address[2]), int(count), int(index), None, NAMES[0])


def _detected(patience: int) -> Process:
    """The process that Slurm, a TPU pod, GKE or Open MPI says this one is."""
    reason = "none of their variables are set"
    try:
        coordinator, count, index, devices = (
            clusters.ClusterEnv.auto_detect_unset_distributed_params(
                *(None, None, None, None, None), patience
            )
        )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        coordinator, reason = None, first_line(error)
    if coordinator is None:
        raise ConfigError(
            "GENJAX_DISTRIBUTED=auto: no cluster was found here (Slurm, a TPU pod, GKE or Open "
            f"MPI): {reason}. Unset it for one process, or set {', '.join(NAMES)}."
        )
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):  # the user's word: JAX reads it
        devices = None
    host, _, port = coordinator.rpartition(":")
    chosen = None if devices is None else tuple(devices)
    return Process(host, int(port), count, index, chosen, "the cluster's variables")
