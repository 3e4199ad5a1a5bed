"""Which of several processes has ended: a roll call over JAX's coordination service.

A process whose program fails because another one is gone calls the roll. Others may wait for a
process that lives: they hear the call in a thread, answer, and end too. Where the programs of
accelerators only wait for a dead process, the first process notices that its sign of life stays
away.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable

import jax
from jax._src import distributed  # the service's store of keys has no public face

CALLED, HERE, ALIVE = "genjax/called/", "genjax/here/", "genjax/alive/"
OVER = "over"  # in place of a sign of life: the process has ended well
PAUSE = 1.0  # seconds between two signs of life, and between two looks whether somebody calls
PATIENCE = 5.0  # seconds in which a living process answers
SILENCE = 30.0  # seconds without a sign of life after which a process is gone

_over = threading.Event()
_calling = threading.Lock()


def listen(end: Callable[[], None]) -> None:
    """Hears calls from now on, in a thread of its own; `end` is called after one."""
    listener = threading.Thread(target=_hear, args=(end,), name="roll call", daemon=True)
    listener.start()

    @atexit.register
    def stop() -> None:  # the thread may not outlive JAX's client
        _over.set()
        listener.join(PATIENCE)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _say(ALIVE, OVER)


def _hear(end: Callable[[], None]) -> None:
    client, count, seen = distributed.global_state.client, 0, {}
    while not _over.wait(PAUSE):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 is gone
            count += 1
            _say(ALIVE, str(count))
            if client.key_value_dir_get(CALLED):
                _say(HERE)
                end()
            if jax.process_index() == 0 and _silent(dict(client.key_value_dir_get(ALIVE)), seen):
                end()


def _silent(signs: dict[str, str], seen: dict[str, tuple[str, float]]) -> bool:
    """Whether a process has given the same sign of life for too long; updates `seen`."""
    now = time.monotonic()
    for name, sign in signs.items():
        if sign == OVER or sign != seen.get(name, ("", 0.0))[0]:
            seen[name] = (sign, now)
    return any(now - since > SILENCE for _, since in seen.values())


def _say(prefix: str, value: str = "") -> None:
    key = f"{prefix}{jax.process_index()}"
    distributed.global_state.client.key_value_set(key, value, allow_overwrite=True)


def missing() -> list[int]:
    """The processes that do not answer; whoever calls this ends its own process afterwards.

    It takes `PATIENCE` seconds at most; of two processes the other one is meant. A second thread
    that calls it waits for the end.
    """
    _calling.acquire()
    count, index = jax.process_count(), jax.process_index()
    if count == 2:
        return [1 - index]
    everybody, until = set(range(count)), time.monotonic() + PATIENCE
    try:
        _say(CALLED)
        _say(HERE)
        while True:
            answers = distributed.global_state.client.key_value_dir_get(HERE)
            silent = everybody - {int(key.rpartition("/")[2]) for key, _ in answers}
            if len(silent) <= 1 or time.monotonic() > until:
                return sorted(silent)
            time.sleep(PAUSE / 5)
    except jax.errors.JaxRuntimeError:  # the service is in process 0
        return [0]
