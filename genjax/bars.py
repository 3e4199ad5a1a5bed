"""Progress of long work: a bar on a terminal, log lines elsewhere."""

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

STOPPING = "stopping when the current computation has ended"
PIECE = 2**20  # bytes per read
EVERY = 30.0  # seconds between log lines without a terminal
ANSWERED = (signal.SIGINT, signal.SIGTERM)
TICK = 1.0  # seconds between refreshes of a bar, which shows the elapsed time


@contextlib.contextmanager
def following(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows progress towards `total`; yields a function that takes the number of newly done items.

    On a terminal it is a bar below any others; its clock keeps running while nothing is done, for
    example during compilation. Elsewhere it is a log line at most every `EVERY` seconds.

    Args:
      what: name of the work, such as "sampling".
      total: number of items.
    """
    bar = tqdm(
        total=total,
        desc=what,
        leave=False,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        bar_format="{desc} {n_fmt} of {total_fmt} |{bar}| {elapsed}<{remaining}",
    )
    finished, last_logged, done = threading.Event(), time.monotonic(), 0

    def tick() -> None:
        while not finished.wait(TICK):
            bar.refresh()

    def advance(count: int) -> None:
        nonlocal last_logged, done
        done += count
        bar.update(count)
        if time.monotonic() - last_logged > EVERY and done < total:
            last_logged = time.monotonic()
            logger.info("%s: %d of %d", what, done, total, extra={"progress": True})

    ticker = threading.Thread(target=tick, daemon=True)
    if not bar.disable:
        ticker.start()
    try:
        yield advance
    finally:
        finished.set()
        if not bar.disable:
            ticker.join()
        bar.close()


@contextlib.contextmanager
def answered(doing: Callable[[], str]) -> Iterator[None]:
    """Prints a message at once on Ctrl-C and SIGTERM, whatever the main thread is doing.

    A Python signal handler must wait for the main thread, which may spend minutes in a compiled
    program. Instead, a thread reads the byte that the interpreter writes when a signal arrives.

    Args:
      doing: returns the message, such as "stopping after this evaluation"; called by that thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    previous_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

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
        signal.set_wakeup_fd(previous_fd)
        os.close(write)  # ends the thread
        listener.join()
        os.close(read)


def read_all(answer: BinaryIO, what: str) -> bytes:
    """Reads all bytes of a response and shows the progress in kB.

    Args:
      answer: the response; its `length`, if it has one, is the total number of bytes.
      what: name of the work, such as "downloading inception.pth".
    """
    parts, total = [], getattr(answer, "length", None) or 0
    logger.info("%s%s", what, f", {total / 1e6:,.1f} MB" if total else "")
    with following(f"{what}, kB", -(-total // 1000)) as advance:
        while part := answer.read(PIECE):
            parts.append(part)
            advance(-(-len(part) // 1000))
    return b"".join(parts)
