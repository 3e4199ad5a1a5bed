"""Reads damaged files with bounded memory and time, in a process that may die of it.

    python child.py READER SEED SECONDS FOLDER

The corpus comes first, then examples are damaged for so many seconds. What is being read lies in
FOLDER, so that it is there if the process dies.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("fuzz", "data", "interop")]

import numpy as np  # noqa: E402
from readers import READERS, Reader, outcome  # noqa: E402

ROOM = 2**30  # bytes of memory beyond what is there when all is imported
PATIENCE = 30  # seconds for one file
CORPUS = Path(__file__).with_name("corpus")


class TooLong(BaseException):
    """A file takes longer than `PATIENCE`."""


def bounded() -> None:
    """Limits this process's memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def stop(*_):
        raise TooLong

    signal.signal(signal.SIGALRM, stop)


def tried(reader: Reader, path: Path) -> str:
    """The outcome of one file, or a traceback."""
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stderr(None):
            return outcome(reader, path)
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)


def main(name: str, seed: str, seconds: str, given: str) -> int:
    """Runs what the command line asks for; 1 if a file had another outcome than it may have."""
    reader, folder = READERS[name], Path(given)
    os.chdir(folder)
    examples = reader.examples()
    bounded()
    counts = {"right": 0, "refused": 0}
    place = folder / "input" / f"case{reader.suffix}"
    place.parent.mkdir()

    def check(content: bytes, label: str) -> None:
        place.write_bytes(content)
        found = tried(reader, place)
        if found not in counts:
            print(f"{name}, {label}: what was read lies in {place}\n{found}")
            sys.exit(1)
        counts[found] += 1

    for content in examples:
        check(content, "an example")
    assert not counts["refused"], "a good file is refused"
    for path in sorted((CORPUS / name).glob("*")):
        check(path.read_bytes(), path.name)
    end, number = time.monotonic() + float(seconds), 0
    while time.monotonic() < end:
        rng = np.random.default_rng([int(seed), number])
        content = reader.mutate(examples[int(rng.integers(len(examples)))], rng)
        check(content, f"seed {seed}, number {number}")
        number += 1
    print(f"{number} damaged files; in all {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
