"""What interrupts a run: signals, and the minutes between timed checkpoints."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from genjax.parallel.distributed import largest

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Yields a list to which signals that end a run are added; a second Ctrl-C stops at once.

    These are Ctrl-C, SIGTERM, SIGHUP (the terminal has closed) and SIGUSR1 (a scheduler's warning,
    such as Slurm's --signal=USR1@120). A signal that was ignored before, as SIGHUP is under nohup,
    stays ignored.
    """
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    handled = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    old = {number: signal.signal(number, handle) for number in handled}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Interruptions:
    """Signals, and the minutes between timed checkpoints, agreed on by all processes."""

    POLL = 10  # dispatches between two agreed polls, if there are several processes

    def __init__(self, minutes: float, received: Sequence[int]):
        """Starts the clock; `received` is the list that `signals` appends to."""
        self._seconds, self._received = minutes * 60, received
        self._saved, self._polls = time.monotonic(), 0

    def saved(self) -> None:
        """Restarts the clock: a checkpoint was just saved."""
        self._saved = time.monotonic()

    def poll(self) -> tuple[int, bool]:
        """Returns (the signal that ends the run, or 0; whether a timed checkpoint is due)."""
        self._polls += 1
        if jax.process_count() > 1 and self._polls % self.POLL:
            return 0, False
        late = bool(self._seconds) and time.monotonic() - self._saved > self._seconds
        number = self._received[0] if self._received else 0
        return largest(number), bool(largest(int(late)))
