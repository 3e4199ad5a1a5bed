"""Traces what the devices do during training steps, an evaluation or sampling."""

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

FOLDER = "profile"  # in a run's folder
WARM = 2  # first dispatches of each compiled program, not traced


class Trace:
    """A trace of the first process's devices; on other processes nothing happens.

    Args:
      workdir: the run's folder; the trace is written to `profile` in it.
    """

    def __init__(self, workdir: epath.Path):
        """Prepares the trace; `start` starts it."""
        self._target = epath.Path(workdir) / FOLDER
        self._scratch: tempfile.TemporaryDirectory | None = None

    def start(self) -> None:
        """Starts the trace."""
        if jax.process_index():
            return
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it makes Python several times slower
        self._scratch = tempfile.TemporaryDirectory()
        jax.profiler.start_trace(self._scratch.name, profiler_options=options)

    def stop(self, what: str = "") -> None:
        """Ends the trace, if there is one: writes its files and logs its table.

        Args:
          what: the name of what was traced, for the log; "" discards the trace.

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
    """Traces everything that happens inside, if `wanted` (`config.profile`) is not empty.

    Args:
      wanted: whether to trace; "" is no.
      workdir: the run's folder.
      what: the name of what is traced, for the log.
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

    It ends early at an evaluation, a checkpoint or the end of the run.

    Args:
      steps: the number of steps; 0 is none.
      workdir: the run's folder.
    """

    def __init__(self, steps: int, workdir: epath.Path):
        """Waits until the program is warm."""
        self._steps, self._trace = steps, Trace(workdir)
        self._dispatches: Counter[int] = Counter()
        self._first: int | None = None

    def begin(self, group: range, state: TrainState) -> None:
        """Starts the trace if it is due; call it before the steps of `group` are dispatched."""
        if not self._steps or self._first is not None:
            return
        self._dispatches[len(group)] += 1
        if self._dispatches[len(group)] > WARM:
            jax.block_until_ready(state)
            self._first = group[0]
            self._trace.start()

    def end(self, step: int, state: TrainState, last: bool) -> None:
        """Ends the trace after `step` if it has all its steps, or if `last` is true."""
        if not self._steps or self._first is None:
            return
        if step - self._first + 1 >= self._steps or last:
            jax.block_until_ready(state)
            self._steps = 0
            self._trace.stop(f"steps {self._first} to {step}")

    def close(self) -> None:
        """Ends a trace that an error left open; warns if no step was traced."""
        if self._steps and self._first is None:
            logger.warning(
                "nothing to profile: the run makes fewer than %d dispatches in a row", WARM + 1
            )
        self._trace.stop()
