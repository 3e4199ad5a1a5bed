"""The lock of a run in object storage: an object that its holder writes anew as long as it lives.

No system frees an object when a process dies. So a process that finds the lock taken watches it:
if nobody writes it for `LEASE` seconds, its holder is gone, and the lock is taken over. Clocks of
different machines are not compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator

from etils import epath

from genjax.files import create_exclusively
from genjax.parallel import distributed

logger = logging.getLogger("genjax")

BEAT = 20.0  # seconds between two times that a holder writes its object
LEASE = 90.0  # seconds after which an object that was not written has no holder
LOST = 1  # exit code of a process whose lock has been taken over


@contextlib.contextmanager
def object_lock(path: epath.Path, name: str, wait: bool) -> Iterator[str]:
    """Takes the lock `path`: gives "", or who holds it.

    Args:
      path: of the object.
      name: of this process, unlike any other's.
      wait: whether to watch a lock that is held, for `LEASE` seconds, and to take it over if nobody
        writes it.
    """
    if not create_exclusively(path, _content(name, 0)) and not (wait and _taken_over(path, name)):
        yield _holder(_read(path)) or "unknown"
        return
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, name, over), daemon=True)
    beating.start()
    try:
        yield ""
    finally:
        over.set()
        beating.join()
        if _holder(_read(path)) == name:  # and not one that has taken it over
            path.unlink()


def _content(name: str, beat: int) -> bytes:
    return f"{name}\n{beat}\n".encode()


def _read(path: epath.Path) -> bytes:
    """The object; b"" if there is none."""
    try:
        return path.read_bytes()[:400]
    except FileNotFoundError:
        return b""


def _holder(content: bytes) -> str:
    return (content.decode(errors="replace").splitlines() or [""])[0].strip()


def _taken_over(path: epath.Path, name: str) -> bool:
    """Whether the lock is this process's now, because its holder has not written it."""
    seen = _read(path)
    message = "%s is held by %s: waiting %.0f s to see whether it lives"
    logger.info(message, path, _holder(seen) or "unknown", LEASE)
    until = time.monotonic() + LEASE
    while time.monotonic() < until:
        time.sleep(LEASE / 20)
        now = _read(path)
        if not now:  # its holder has ended well
            return create_exclusively(path, _content(name, 0))
        if now != seen:
            return False
    # Of several that watch, one makes the mark of what they saw; a late one finds another lock.
    mark = path.parent / f"{path.name}.{hashlib.sha256(seen).hexdigest()[:16]}"
    if not create_exclusively(mark, _content(name, 0)):
        maker = _read(mark)
        time.sleep(LEASE)
        if _read(path) != seen or _read(mark) != maker:
            return False
        mark.unlink(missing_ok=True)  # whoever made it died before it took the lock
        if not create_exclusively(mark, _content(name, 0)):
            return False
    try:
        if _read(path) != seen:
            return False
        path.write_bytes(_content(name, 0))
        logger.info("%s: its holder is gone, and the run goes on here", path)
        return True
    finally:
        mark.unlink()


def _beat(path: epath.Path, name: str, over: threading.Event) -> None:
    """Writes the object anew until the run is over; ends this process if another has taken it."""
    beat = 0
    while not over.wait(BEAT):
        beat += 1
        try:
            holder = _holder(_read(path))
            if holder != name:
                owner = f"{holder} has taken over the run" if holder else "it has been removed"
                print(
                    f"error: {path} was not written for {LEASE:.0f} s or more, and {owner}. This "
                    "process ends, so that two do not write one run.",
                    file=sys.stderr,
                    flush=True,
                )
                distributed.leave()
                os._exit(LOST)
            path.write_bytes(_content(name, beat))
        except Exception as error:  # of the network, which may come back; each store has its own
            logger.warning("%s could not be written: %s", path, error)
