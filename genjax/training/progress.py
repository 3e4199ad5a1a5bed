"""Shows the progress of a run, on the terminal and in its log file."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator

from etils import epath
from tqdm import tqdm

from genjax.files import Growing

logger = logging.getLogger("genjax")


def _duration(seconds: float) -> str:
    """Formats a remaining time: `48s`, `12m05s`, `3h20m`, `2d04h`."""
    if not math.isfinite(seconds):
        return "?"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"


_mark = ""  # prefix of the lines and bars inside `marked`


@contextlib.contextmanager
def marked(name: str) -> Iterator[None]:
    """Puts `name` before log lines and bars inside, such as those of a judge's own training.

    Args:
      name: the name of the training inside a run.
    """
    global _mark

    def prefix(record: logging.LogRecord) -> bool:
        record.msg, record.args = f"{name}: {record.getMessage()}", None
        return True

    before, _mark = _mark, f"{name}: "
    logger.addFilter(prefix)
    try:
        yield
    finally:
        logger.removeFilter(prefix)
        _mark = before


class Progress:
    """The progress of a run: a bar on a terminal, plain log lines elsewhere and in the log file.

    Args:
      total: the step that the run ends at.
      start: the step that it starts or resumes at.
      batch_size: examples per step, for the rate.
    """

    def __init__(self, total: int, start: int, batch_size: int):
        """Starts the clock, and the bar if there is a terminal."""
        self._total, self._batch_size = total, batch_size
        self._mark_step, self._mark_time = start, time.perf_counter()
        self._step, self._shown, self.doing = start, "", "training"
        self._bar = tqdm(
            total=total,
            initial=start,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            desc=_mark,
            bar_format="{desc}{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}",
        )

    def step(self, step: int) -> None:
        """Moves the bar to `step`; cheap enough to call after every step."""
        self._step = step
        self._bar.update(step - self._bar.n)

    @contextlib.contextmanager
    def paused(self, doing: str = "") -> Iterator[None]:
        """Keeps the time spent inside out of the rate.

        Args:
          doing: what happens inside, such as "evaluating", for the bar or the log.
        """
        start, before = time.perf_counter(), self.doing
        if doing:
            self.doing = doing
            self._bar.set_postfix_str(doing)
            where = (self._step, self._total)
            logger.info("step %d/%d, %s", *where, doing, extra={"progress": True})
        try:
            yield
        finally:
            self.doing = before
            if doing:
                self._bar.set_postfix_str(self._shown, refresh=False)
            self._mark_time += time.perf_counter() - start

    def log(self, step: int, loss: float) -> float:
        """Shows step, loss, rate and time left, on the bar or else as a line, and in the log file.

        Args:
          step: the step just finished.
          loss: its loss.

        Returns:
          Examples per second since the last call (or the start), pauses left out; nan if no
          step was made since.
        """
        now = time.perf_counter()
        steps, seconds = step - self._mark_step, max(now - self._mark_time, 1e-9)
        self._mark_step, self._mark_time = step, now
        rate = steps * self._batch_size / seconds if steps > 0 else math.nan
        left = (self._total - step) * seconds / steps if steps > 0 else math.nan
        speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        text = f"loss {float(loss):.4g}, {speed} examples/s, ETA {_duration(left)}"
        self._shown = text
        self._bar.set_postfix_str(text, refresh=False)
        self.step(step)
        logger.info("step %d/%d, %s", step, self._total, text, extra={"progress": True})
        return rate

    def close(self) -> None:
        """Leaves the bar as it is and frees the terminal's line."""
        self._bar.close()


class _Terminal(logging.Handler):
    """Prints records above a live bar; progress lines only where there is no bar to show them."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "progress", False) and sys.stderr.isatty():
            return
        with contextlib.suppress(OSError):  # the terminal is gone; the log file has the line
            tqdm.write(self.format(record), file=sys.stderr)


class _LogFile(logging.StreamHandler):
    """Appends to a file; silent on a full disk, because the metrics writer will raise."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        self.stream.close()
        super().close()


def terminal_logging() -> contextlib.AbstractContextManager[None]:
    """Sends the logger "genjax" to the terminal while inside; touches no other logger."""
    handler = _Terminal()
    handler.setFormatter(logging.Formatter("%(message)s"))
    return _handled_by(handler)


def file_logging(workdir: str | os.PathLike) -> contextlib.AbstractContextManager[None]:
    """Sends the logger "genjax" to `workdir/log.txt` as well while inside.

    Args:
      workdir: the run's folder; made if missing. The log is appended to.

    Raises:
      OSError: the log file cannot be opened.
    """
    handler = _LogFile(Growing(epath.Path(workdir) / "log.txt"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return _handled_by(handler)


@contextlib.contextmanager
def _handled_by(handler: logging.Handler) -> Iterator[None]:
    """Adds a handler; restores level, propagation and handlers on exit."""
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False  # absl puts a handler on the root logger: lines would appear twice
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]
