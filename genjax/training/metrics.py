"""Where a run's numbers and pictures go: JSONL, TensorBoard, Weights & Biases, terminal, log file.

Every writer has the same three methods: `scalars(step, values)`, `images(step, name, picture)`
and `close()`; `Writers` fans out to any number of them (none on every process but the first).
A metric's name begins with `train/` or `eval/`. Writing is synchronous and flushed, so that what
was logged before a crash is on disk, and a full disk is an `OSError` here and not a silence.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from genjax.config import ConfigError
from genjax.training.pictures import png, write_atomic

logger = logging.getLogger("genjax")


class Writer(Protocol):
    """What takes the numbers and pictures of a run."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Records the scalars `values` (numbers or 0-d arrays, by name) of training step `step`."""

    def images(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """Records one RGB picture, such as a sample grid, of training step `step`."""

    def close(self) -> None:
        """Ends the record; the writer is not used again."""


def _records(path: Path) -> tuple[list[dict], int]:
    """The JSON objects of a metrics file, and how many lines were none (torn by a crash)."""
    records, bad = [], 0
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=lambda _: None)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        else:
            bad += 1
    return records, bad


def read_metrics(path: str | os.PathLike) -> dict[str, dict[int, float | None]]:
    """Reads a run's `metrics.jsonl`.

    Args:
      path: the file; one that is missing reads as empty, and torn lines are passed over.

    Returns:
      By metric name, its value by step in ascending order; None where it was not finite. Of two
      values for the same step the later line wins. `time` (unix seconds) is among the names.
    """
    metrics: dict[str, dict[int, float | None]] = {}
    for record in sorted(_records(Path(path))[0], key=lambda record: record["step"]):
        for name, value in record.items():
            if name != "step" and (value is None or isinstance(value, int | float)):
                metrics.setdefault(name, {})[record["step"]] = value
    return metrics


def _scalar(name: str, value: Any) -> int | float:
    """A plain number from a number or 0-d array of any dtype; refuses other metrics by name."""
    if not name.startswith(("train/", "eval/")):
        raise ValueError(f"metric {name!r}: expected a name that begins with 'train/' or 'eval/'")
    array = np.asarray(value)
    if array.ndim:
        raise ValueError(f"metric {name!r} has shape {array.shape}: expected a scalar")
    return int(array) if array.dtype.kind in "iub" else float(array)


class JsonlWriter:
    """`metrics.jsonl`: one JSON object a line with `step`, `time` (unix seconds) and the metrics.

    A number that is not finite is written as null, so that every line is valid JSON. On resume
    the lines beyond the checkpoint (step > `start_step`), which the resumed run will write again,
    and lines torn by a crash are removed, atomically.

    Args:
      path: the file; made if missing.
      start_step: the step that the run starts or resumes at.

    Raises:
      OSError: the file cannot be written (read-only folder, full disk).
    """

    def __init__(self, path: str | os.PathLike, start_step: int):
        """Opens the file for appending, rid of what the run will write again."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        records, bad = _records(path)
        kept = [record for record in records if record["step"] <= start_step]
        content = "".join(json.dumps(record) + "\n" for record in kept).encode()
        if path.exists() and content != path.read_bytes():
            write_atomic(path, content)
            logger.info(
                "%s: dropped %d lines beyond step %d and %d torn ones",
                *(path.name, len(records) - len(kept), start_step, bad),
            )
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open until close()

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line and flushes it."""
        record: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
        for name, value in values.items():
            number = _scalar(name, value)
            record[name] = number if math.isfinite(number) else None
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def images(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """Leaves pictures to `samples/` and to the other writers."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardWriter:
    """TensorBoard event files, without TensorFlow.

    Args:
      logdir: folder of the event files; made if missing.
      start_step: the step that the run resumes at; TensorBoard then hides what an earlier,
        killed process wrote beyond it.
    """

    def __init__(self, logdir: str | os.PathLike, start_step: int = 0):
        """Opens a new event file."""
        Path(logdir).mkdir(parents=True, exist_ok=True)
        # The plain synchronous writer: SummaryWriter's thread dies on a full disk, and its
        # bounded queue then blocks the training loop for ever.
        unique = f".{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._events = EventsWriter(os.path.join(logdir, "events"), unique)
        if start_step:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=start_step + 1, session_log=start))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)
        self._events.flush()

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one event with all the scalars (float32, as TensorBoard keeps them)."""
        numbers = [(name, _scalar(name, value)) for name, value in values.items()]
        summary = Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in numbers])
        self._write(Event(step=int(step), summary=summary))

    def images(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """Writes one event with the picture as PNG."""
        height, width, _ = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=3)
        image.encoded_image_string = png(picture)
        value = Summary.Value(tag=name, image=image)
        self._write(Event(step=int(step), summary=Summary(value=[value])))

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()


class WandbWriter:
    """A Weights & Biases run; a resumed run continues the same one (id in `workdir/wandb_id`).

    Args:
      project: the project's name (`log.wandb_project`).
      config: the run's config as nested dicts, shown beside the run.
      workdir: folder of the run.

    Raises:
      ConfigError: the package wandb is not installed.
    """

    def __init__(self, project: str, config: Mapping[str, Any], workdir: str | os.PathLike):
        """Starts the run, or continues it."""
        try:
            from wandb import Image, init
        except ImportError as error:
            raise ConfigError(
                "log.wandb=True needs the package wandb, which is not installed: "
                "pip install 'genjax-models[wandb]', or leave it out with --config.log.wandb=False"
            ) from error
        self._image = Image
        marker = Path(workdir) / "wandb_id"
        if not marker.exists():
            write_atomic(marker, uuid.uuid4().hex[:12].encode())
        self._run = init(
            project=project,
            id=marker.read_text().strip(),
            resume="allow",
            config=dict(config),
            dir=str(workdir),
            name=Path(workdir).resolve().name,
        )
        # Our own step as the axis: wandb's would refuse the steps that a resumed run repeats.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs the scalars under their names."""
        numbers = {name: _scalar(name, value) for name, value in values.items()}
        self._run.log({"step": int(step), **numbers})

    def images(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """Logs the picture under its name."""
        self._run.log({"step": int(step), name: self._image(picture)})

    def close(self) -> None:
        """Finishes the run (uploads what is left)."""
        self._run.finish()


class Writers:
    """Hands everything to each of several writers, in order; `Writers([])` writes nothing."""

    def __init__(self, writers: Sequence[Writer]):
        """Takes the writers, in the order they are called."""
        self._writers = list(writers)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Records the scalars `values` of training step `step` everywhere."""
        for writer in self._writers:
            writer.scalars(step, values)

    def images(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """Records one RGB picture everywhere."""
        for writer in self._writers:
            writer.images(step, name, picture)

    def close(self) -> None:
        """Closes every writer, the later ones too when an earlier one fails."""
        with contextlib.ExitStack() as stack:
            for writer in self._writers:
                stack.callback(writer.close)


def _duration(seconds: float) -> str:
    """A time to come as people say it: `48s`, `12m05s`, `3h20m`, `2d04h`."""
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


class Progress:
    """How far the run is: a bar on a terminal, plain log lines elsewhere and in the log file.

    Args:
      total: the step that the run ends at.
      start: the step that it starts or resumes at.
      batch_size: examples a step, for the rate.
    """

    def __init__(self, total: int, start: int, batch_size: int):
        """Starts the clock, and the bar if there is a terminal."""
        self._total, self._batch_size = total, batch_size
        self._mark_step, self._mark_time = start, time.perf_counter()
        self._bar = tqdm(
            total=total,
            initial=start,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}",
        )

    def step(self, step: int) -> None:
        """Moves the bar to `step`; call it every step, it costs next to nothing."""
        self._bar.update(step - self._bar.n)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the time spent inside (evaluation, saving, sampling) out of the rate."""
        start = time.perf_counter()
        try:
            yield
        finally:
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
        self._bar.set_postfix_str(text, refresh=False)
        self.step(step)
        logger.info("step %d/%d, %s", step, self._total, text, extra={"progress": True})
        return rate

    def close(self) -> None:
        """Leaves the bar as it stands and frees the terminal's line."""
        self._bar.close()


class _Terminal(logging.Handler):
    """Prints records above a live bar; progress lines only where there is no bar to show them."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "progress", False) and sys.stderr.isatty():
            return
        with contextlib.suppress(OSError):  # the terminal is gone; the log file has the line
            tqdm.write(self.format(record), file=sys.stderr)


class _LogFile(logging.FileHandler):
    """Appends to a file; on a full disk it stays quiet, for the metrics writer will raise."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextlib.contextmanager
def setup_logging(workdir: str | os.PathLike | None) -> Iterator[None]:
    """Sends the logger "genjax" to the terminal and to `workdir/log.txt` while inside.

    Touches no other logger; level, propagation and handlers are as before on leaving.

    Args:
      workdir: the run's folder; made if missing. The log is appended to. None: no file.

    Raises:
      OSError: the log file cannot be opened.
    """
    terminal = _Terminal()
    terminal.setFormatter(logging.Formatter("%(message)s"))
    handlers: list[logging.Handler] = [terminal]
    if workdir is not None:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        file = _LogFile(Path(workdir) / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.insert(0, file)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False  # absl puts a handler on the root logger: lines would come twice
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]
