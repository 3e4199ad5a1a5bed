"""The start of the command line: Ctrl-C during imports, and tracebacks from threads.

`main` imports this module first; in other programs it does nothing. Imports take seconds; on Ctrl-C
they end with one line. If one array of a checkpoint cannot be read, tensorstore's threads are still
reading the others and print one traceback each after the error was reported; these are dropped.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

BEGAN = time.perf_counter()  # when the command began
INTERRUPTED = 130  # exit code after Ctrl-C
PROGRAM = "genjax.main"


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _without_closed_loops(unraisable: sys.UnraisableHookArgs) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def started() -> None:
    """Restores the default Ctrl-C handler after the imports, so that cleanup code runs."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_spec = getattr(sys.modules["__main__"], "__spec__", None)
_default_handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not ignored
if _spec is not None and _spec.name == PROGRAM:
    sys.unraisablehook = _without_closed_loops
    if _default_handler:
        signal.signal(signal.SIGINT, _end)
