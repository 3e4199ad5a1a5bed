"""Start-up of one or several processes from the environment, and agreement between them."""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from genjax.checks import ConfigError, first_line, one_of, require

logger = logging.getLogger("genjax")

NAMES = ("GENJAX_COORDINATOR", "GENJAX_PROCESS_COUNT", "GENJAX_PROCESS_INDEX")
PATIENCE = 300  # seconds that processes wait for each other at the start
SHOWN = 10  # the most differences, or processes, that an error names
RETRIES = 1.0  # seconds between two attempts to reach the coordinator


def initialize() -> None:
    """Joins the processes of this run, if the environment says that there are several.

    `GENJAX_COORDINATOR` (host:port), `GENJAX_PROCESS_COUNT` and `GENJAX_PROCESS_INDEX` describe
    any cluster; with `GENJAX_DISTRIBUTED=auto` JAX detects the cluster (Slurm, TPU pods, GKE,
    Open MPI). On CPUs the collectives are gloo's.

    Raises:
      ConfigError: only some of the variables are set, or one is invalid; there is no cluster; the
        coordinator cannot be reached.
    """
    values = [os.environ.get(name) for name in NAMES]
    given = os.environ.get("GENJAX_DISTRIBUTED", "")
    one_of("GENJAX_DISTRIBUTED", given, ("", "auto"))
    if not any(values) and not given:
        return
    if given:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        _join_cluster()
        return
    if not all(values):
        missing = [name for name, value in zip(NAMES, values, strict=True) if not value]
        raise ConfigError(f"several processes need all of {', '.join(NAMES)}; missing: {missing}.")
    coordinator, count, index = values
    address = re.fullmatch(r"(.+):([0-9]{1,5})", coordinator)
    valid = address is not None and 0 < int(address[2]) < 2**16
    require(valid, NAMES[0], coordinator, "HOST:PORT of the first process")
    require(
        bool(re.fullmatch(r"[0-9]{1,6}", count)) and int(count) > 0, NAMES[1], count, "1 or more"
    )
    valid = bool(re.fullmatch(r"[0-9]{1,6}", index)) and int(index) < int(count)
    require(valid, NAMES[2], index, f"0 to {int(count) - 1}, as {NAMES[1]} is {count}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if int(index):
        _wait_for(address[1].strip("[]"), int(address[2]), index, count)
    elif int(count) > 1:
        logger.info("process 0 of %s: waiting for the others at %s", count, coordinator)
    try:
        jax.distributed.initialize(
            coordinator, int(count), int(index), initialization_timeout=PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"process {index} of {count} could not join the others at {coordinator}: "
            f"{first_line(error)}. Start all processes, each with its own {NAMES[2]}, and use a "
            "free port."
        ) from error


def _join_cluster() -> None:
    try:
        jax.distributed.initialize(initialization_timeout=PATIENCE)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            "GENJAX_DISTRIBUTED=auto: no cluster was found here (Slurm, a TPU pod, GKE or Open "
            f"MPI): {first_line(error)}. Unset it for one process, or set "
            f"{', '.join(NAMES)}."
        ) from error


def _wait_for(host: str, port: int, index: str, count: str) -> None:
    """Waits until the coordinator answers, and logs that it waits.

    Raises:
      ConfigError: the coordinator has not answered within `PATIENCE` seconds.
    """
    start, logged, reason = time.monotonic(), False, ""
    while time.monotonic() - start < PATIENCE:
        try:
            socket.create_connection((host, port), timeout=RETRIES).close()
            return
        except OSError as error:
            reason = str(error)
        if not logged:
            message = "process %s of %s: waiting for process 0 at %s:%d (for %d s at most)"
            logger.info(message, index, count, host, port, PATIENCE)
            logged = True
        time.sleep(RETRIES)
    raise ConfigError(
        f"process {index} of {count}: no process 0 at {host}:{port} after {PATIENCE} s ({reason}). "
        f"Start it, or correct {NAMES[0]}."
    )


_watcher: subprocess.Popen | None = None


def _start_watcher() -> None:
    """Starts a shell that prints an error if this process ends without printing one.

    JAX aborts a process, from a thread of its own, as soon as process 0 has ended, and the system
    kills a process that takes too much memory. Neither can be caught, so a shell waits until the
    pipe from this process closes.
    """
    global _watcher
    index, count = jax.process_index(), jax.process_count()
    address = f" ({os.environ[NAMES[0]]})" if os.environ.get(NAMES[0]) else ""
    message = (
        f"error: process {index} of {count} ended: it was killed, or process 0{address} has "
        "ended; see the output of process 0. Start all processes again: run the same command to "
        "resume from the last checkpoint."
    )
    script = 'read -r word || printf "%s\\n" "$0" >&2'
    _watcher = subprocess.Popen(["/bin/sh", "-c", script, message], stdin=subprocess.PIPE)
    atexit.register(leave)


def leave() -> None:
    """Ends the shell that waits for this process to end, so that it prints no error."""
    global _watcher
    if _watcher is not None:
        with contextlib.suppress(BrokenPipeError):  # a signal to the group has ended the shell
            _watcher.communicate(b"done\n")
        _watcher = None


def start() -> None:
    """Starts JAX's backend and, with several processes, the shell that reports a sudden end.

    Raises:
      ConfigError: there are no devices of the requested kind.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms
        reason = (str(error).strip() or "none were found").splitlines()[0]
        raise ConfigError(
            f"JAX finds no devices to run on (JAX_PLATFORMS={platforms or ''}): {reason}. "
            + ("Unset it, or install" if platforms else "Install")
            + " the packages for them, for example with GENJAX_EXTRAS=cuda launch/local.sh."
        ) from error
    if several():
        _start_watcher()


def is_of_a_peer(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a program has failed because another process failed or did not take part."""
    pattern = r"gloo|nccl|connection (reset|closed|refused)|heartbeat|socket closed|unhealthy"
    return bool(re.search(pattern, str(error), re.IGNORECASE))


def several() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def accelerated() -> bool:
    """Whether JAX may have accelerators here, as far as is known before its backend starts."""
    chosen = (jax.config.jax_platforms or "").split(",")[0]
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return chosen != "cpu" and bool(plugins or importlib.util.find_spec("libtpu"))


def largest(value: int) -> int:
    """The largest of the processes' values, returned on every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.array(value)).max())


def texts(own: str) -> list[str]:
    """The text of each process, in order of their indices."""
    if jax.process_count() == 1:
        return [own]
    content = np.frombuffer(own.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(content)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(content)] = content
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def agree(values: Mapping[str, str]) -> None:
    """Checks that named values are the same on all processes of a run.

    Raises:
      ConfigError: on every process, if values differ; names them and the processes.
    """
    by_process = [json.loads(text) for text in texts(json.dumps(dict(values)))]
    names = dict.fromkeys(name for mapping in by_process for name in mapping)
    different = [name for name in names if len({each.get(name) for each in by_process}) > 1]
    if not different:
        return
    lines = []
    for name in different[:SHOWN]:
        by_value: dict[str, list[int]] = {}
        for index, mapping in enumerate(by_process):
            by_value.setdefault(mapping.get(name, "absent"), []).append(index)
        parts = ", ".join(f"{value} on {_named(indices)}" for value, indices in by_value.items())
        lines.append(f"  {name}: {parts}")
    more = f"\n  and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    raise ConfigError(
        "the processes of this run disagree:\n"
        + "\n".join(lines)
        + more
        + "\nStart all processes with the same command, data and versions."
    )


def _named(indices: list[int]) -> str:
    few = ", ".join(map(str, indices[:SHOWN])) + ", ..." * (len(indices) > SHOWN)
    return f"process{'es' if len(indices) > 1 else ''} {few}"


def barrier(name: str) -> None:
    """Waits until every process has reached this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
