"""How far a piece of work is that takes a while: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from tqdm import tqdm

logger = logging.getLogger("genjax")

STOPPING = "stopping when the computation that runs has ended"
PIECE = 2**20  # bytes that are read at once
EVERY = 30.0  # seconds between two lines where there is no terminal
ANSWERED = (signal.SIGINT, signal.SIGTERM)
TICK = 1.0  # seconds between two looks of a bar, which shows the time


@contextlib.contextmanager
def following(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how much of `total` is done; the function that it gives takes how much more there is.

    On a terminal it is a bar below those that are there, whose clock goes on while nothing is
    done, as while a program is compiled. Elsewhere it is a line in the log at most every `EVERY`
    seconds.

    Args:
      what: is being done, such as "sampling".
      total: how many there are to do.
    """
    bar = tqdm(
        total=total,
        desc=what,
        leave=False,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        bar_format="{desc} {n_fmt} of {total_fmt} |{bar}| {elapsed}<{remaining}",
    )
    over, said, done = threading.Event(), time.monotonic(), 0

    def tick() -> None:
        while not over.wait(TICK):
            bar.refresh()

    def advance(count: int) -> None:
        nonlocal said, done
        done += count
        bar.update(count)
        if time.monotonic() - said > EVERY and done < total:
            said = time.monotonic()
            logger.info("%s: %d of %d", what, done, total, extra={"progress": True})

    clock = threading.Thread(target=tick, daemon=True)
    if not bar.disable:
        clock.start()
    try:
        yield advance
    finally:
        over.set()
        if not bar.disable:
            clock.join()
        bar.close()


@contextlib.contextmanager
def answered(doing: Callable[[], str]) -> Iterator[None]:
    """Answers Ctrl-C and SIGTERM in words at once, whatever the main thread is doing.

    A handler of Python has to wait for the main thread, which may be minutes in a compiled
    program; the byte that the interpreter writes as a signal comes is read by a thread.

    Args:
      doing: what to say, such as "stopping after this evaluation"; called by that thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def answer() -> None:
        while number := os.read(read, 1):
            if number[0] in ANSWERED:
                with contextlib.suppress(OSError):  # the terminal is gone
                    os.write(2, f"\n{doing()}\n".encode())

    listener = threading.Thread(target=answer, daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)  # ends the thread
        listener.join()
        os.close(read)


def read_all(answer: BinaryIO, what: str) -> bytes:
    """The bytes of an answer, with how many thousands of them are there.

    Args:
      answer: of a host; its `length`, if it has one, is how many there are.
      what: is read, such as "downloading inception.pth".
    """
    parts, total = [], getattr(answer, "length", None) or 0
    logger.info("%s%s", what, f", {total / 1e6:,.1f} MB" if total else "")
    with following(f"{what}, kB", -(-total // 1000)) as advance:
        while part := answer.read(PIECE):
            parts.append(part)
            advance(-(-len(part) // 1000))
    return b"".join(parts)
