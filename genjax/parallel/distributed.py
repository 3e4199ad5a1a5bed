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
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from genjax.checks import ConfigError, first_line
from genjax.parallel import cluster, roll_call

logger = logging.getLogger("genjax")

PATIENCE = 300  # seconds that processes wait for each other at the start
SHOWN = 10  # the most differences, or processes, that an error names
RETRIES = 1.0  # seconds between two attempts to reach the coordinator
LAST_WORDS = 2.0  # seconds in which the other processes can print their errors
HEARTBEAT = 55  # seconds without a sign of life after which JAX ends all processes


def initialize() -> None:
    """Joins the processes of this run, if the environment says that there are several.

    `GENJAX_COORDINATOR` (host:port), `GENJAX_PROCESS_COUNT` and `GENJAX_PROCESS_INDEX` describe
    any cluster; with `GENJAX_DISTRIBUTED=auto` JAX detects the cluster (Slurm, TPU pods, GKE,
    Open MPI). On CPUs the collectives are gloo's.

    Raises:
      ConfigError: only some of the variables are set, or one is invalid; there is no cluster; the
        coordinator cannot be reached.
    """
    process = cluster.read(PATIENCE)
    if process is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    label = f"process {process.index} of {process.count}"
    if process.index:
        _wait_for(process)
    elif process.count > 1:
        logger.info("%s: waiting for the others at %s", label, process.coordinator)
    # JAX aborts this process if some of the others do not come.
    _start_watcher(
        f"error: {label} ended: it was killed, or another process did not join it at "
        f"{process.coordinator} within {PATIENCE} s. Start all processes, each with its own index."
    )
    try:
        jax.distributed.initialize(
            *(process.coordinator, process.count, process.index, process.devices),
            cluster_detection_method="deactivate",
            initialization_timeout=PATIENCE,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{label} could not join the others at {process.coordinator}: {first_line(error)}. "
            "Start all processes, each with its own index, and use a free port."
        ) from error
    finally:
        leave()


def _wait_for(process: cluster.Process) -> None:
    """Waits until the coordinator answers, and logs that it waits.

    Raises:
      ConfigError: the coordinator has not answered within `PATIENCE` seconds.
    """
    start, logged, reason = time.monotonic(), False, ""
    label = f"process {process.index} of {process.count}"
    while time.monotonic() - start < PATIENCE:
        try:
            address = process.host.strip("[]"), process.port
            socket.create_connection(address, timeout=RETRIES).close()
            return
        except OSError as error:
            reason = str(error)
        if not logged:
            message = "%s: waiting for process 0 at %s (for %d s at most)"
            logger.info(message, label, process.coordinator, PATIENCE)
            logged = True
        time.sleep(RETRIES)
    raise ConfigError(
        f"{label}: no process 0 at {process.coordinator} after {PATIENCE} s ({reason}). Start it, "
        f"or correct {process.source}."
    )


_watcher: subprocess.Popen | None = None


def _start_watcher(message: str) -> None:
    """Starts a shell that prints `message` if this process ends without an error of its own.

    JAX aborts a process, from a thread of its own, as soon as process 0 has ended, and the system
    kills a process that takes too much memory. Neither can be caught, so a shell waits until the
    pipe from this process closes.
    """
    global _watcher
    script = 'read -r word || printf "%s\\n" "$0" >&2'
    _watcher = subprocess.Popen(["/bin/sh", "-c", script, message], stdin=subprocess.PIPE)


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
        index, count = jax.process_index(), jax.process_count()
        others = "process 0 has ended; see the output of process 0"
        if index == 0:
            others = "another process has ended, which the lines above name as a task"
        _start_watcher(
            f"error: process {index} of {count} ended: it was killed, or {others}. Start all "
            "processes again: run the same command to resume from the last checkpoint."
        )
        atexit.register(leave)
        roll_call.listen(end_after_peer)


def is_of_a_peer(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a program has failed because another process failed or did not take part."""
    pattern = r"gloo|nccl|connection (reset|closed|refused)|heartbeat|socket closed|unhealthy"
    return bool(re.search(pattern, str(error), re.IGNORECASE))


def end_after_peer(reason: str = "it does not answer") -> NoReturn:
    """Ends this process with a message that names the process that has ended before it."""
    silent = roll_call.missing()
    names = f"{_named(silent)} of {jax.process_count()}" if silent else "another process"
    print(
        f"error: {names} ended ({reason}). Its own output says why. Start all processes again: run "
        "the same command to resume from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    exit_in_turn(1)


def exit_in_turn(code: int) -> NoReturn:
    """Ends this one of several processes, so that none waits for it.

    The first process holds the others together, so it goes last.
    """
    if jax.process_index() == 0:
        time.sleep(LAST_WORDS)
    leave()
    sys.stdout.flush()
    os._exit(code)


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
