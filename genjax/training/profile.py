"""Tracing what the devices do in steps of training, an evaluation or sampling."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath

from genjax.files import write_atomic
from genjax.train_state import TrainState
from genjax.training.operations import read, table

logger = logging.getLogger("genjax")

FOLDER = "profile"  # of a run's folder
WARM = 2  # dispatches of a compiled program that are left out


class Trace:
    """A trace of the first process's devices; on others nothing happens.

    Args:
      workdir: of the run; the trace goes into its folder `profile`.
    """

    def __init__(self, workdir: epath.Path):
        """Prepares; `start` starts it."""
        self._target = epath.Path(workdir) / FOLDER
        self._scratch: tempfile.TemporaryDirectory | None = None

    def start(self) -> None:
        """Begins to trace."""
        if jax.process_index():
            return
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it makes Python several times slower
        self._scratch = tempfile.TemporaryDirectory()
        jax.profiler.start_trace(self._scratch.name, profiler_options=options)

    def stop(self, what: str = "") -> None:
        """Ends the trace, if there is one: writes its files and logs its table.

        Args:
          what: was traced, for the log; "" throws the trace away.

        Raises:
          OSError: the files cannot be written.
        """
        if self._scratch is None:
            return
        scratch, self._scratch = self._scratch, None
        with scratch as folder:
            jax.profiler.stop_trace()
            files = [path for path in Path(folder).rglob("*") if what and path.is_file()]
            for path in files:
                write_atomic(self._target / path.relative_to(folder), path.read_bytes())
            spaces = [path.read_bytes() for path in files if path.name.endswith(".xplane.pb")]
        for space in spaces:
            logger.info("profile of %s, in %s: %s", what, self._target, table(read(space)))


@contextlib.contextmanager
def traced(wanted: str, workdir: epath.Path, what: str) -> Iterator[None]:
    """Traces all that happens inside, if `wanted` (`config.profile`) is not empty.

    Args:
      wanted: whether to; "" is never.
      workdir: of the run.
      what: is traced, for the log.
    """
    trace, done = Trace(workdir), ""
    try:
        if wanted:
            trace.start()
        yield
        done = what
    finally:
        trace.stop(done)


class StepTrace:
    """A trace of some steps of training, once their program is warm.

    It ends early where an evaluation, a checkpoint or the end of the run comes.

    Args:
      steps: how many; 0 is none.
      workdir: of the run.
    """

    def __init__(self, steps: int, workdir: epath.Path):
        """Waits until the program is warm."""
        self._steps, self._trace = steps, Trace(workdir)
        self._seen: Counter[int] = Counter()
        self._first: int | None = None

    def begin(self, group: range, state: TrainState) -> None:
        """Starts the trace if it is due, ahead of the dispatch of the steps of `group`."""
        if not self._steps or self._first is not None:
            return
        self._seen[len(group)] += 1
        if self._seen[len(group)] > WARM:
            jax.block_until_ready(state)
            self._first = group[0]
            self._trace.start()

    def end(self, step: int, state: TrainState, last: bool) -> None:
        """Ends the trace after `step` if its steps are done, or if it is the `last` in a row."""
        if not self._steps or self._first is None:
            return
        if step - self._first + 1 >= self._steps or last:
            jax.block_until_ready(state)
            self._steps = 0
            self._trace.stop(f"steps {self._first} to {step}")

    def close(self) -> None:
        """Ends a trace that an error has left open; warns if there was no step to trace."""
        if self._steps and self._first is None:
            logger.warning(
                "nothing to profile: the run makes fewer than %d dispatches in a row", WARM + 1
            )
        self._trace.stop()
