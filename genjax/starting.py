"""Ctrl-C while the program starts: its imports take seconds, and are ended in one line.

`main` imports this before all else. In any other program it does nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130  # exit code of a command that Ctrl-C has ended
PROGRAM = "genjax.main"


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def started() -> None:
    """Gives Ctrl-C its usual meaning back: what is imported can clear up after itself."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_spec = getattr(sys.modules["__main__"], "__spec__", None)
_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not ignored
if _spec is not None and _spec.name == PROGRAM and _usual:
    signal.signal(signal.SIGINT, _end)
