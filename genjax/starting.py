"""The start of the command line: Ctrl-C in the imports, and errors that threads leave over.

`main` imports this before all else. In any other program it does nothing. Imports take seconds;
Ctrl-C ends them in one line. When one array of a checkpoint cannot be read, reads of the others
are still under way in tensorstore's threads and end with a traceback each, after the error has
been caught and reported; these tracebacks are dropped.
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


def _without_closed_loops(left: sys.UnraisableHookArgs) -> None:
    if str(left.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(left)


def started() -> None:
    """Gives Ctrl-C its usual meaning back: what is imported can clear up after itself."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_spec = getattr(sys.modules["__main__"], "__spec__", None)
_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not ignored
if _spec is not None and _spec.name == PROGRAM:
    sys.unraisablehook = _without_closed_loops
    if _usual:
        signal.signal(signal.SIGINT, _end)
