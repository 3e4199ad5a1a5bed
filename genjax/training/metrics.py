"""Where a run's numbers, pictures and texts go: JSONL, TensorBoard, Weights & Biases.

Every writer has the same four methods: `scalars(step, values)`, `images(step, name, picture)`,
`text(step, name, text)` and `close()`; `Writers` fans out to any number of them (none on every
process but the first). A metric's name begins with `train/` or `eval/`. Writing is synchronous and
flushed, so that everything logged before a crash is on disk, and a full disk raises `OSError`. In
object storage the last seconds before a crash may be missing.
"""

from __future__ import annotations

import contextlib
import html
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from etils import epath
from jaxtyping import UInt8
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto

from genjax.config import ConfigError
from genjax.files import Growing, absolute, is_local, write_atomic
from genjax.pictures import png

logger = logging.getLogger("genjax")


class Writer(Protocol):
    """A destination for the numbers, pictures and texts of a run."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Records the scalars `values` (numbers or 0-d arrays, by name) of training step `step`."""

    def images(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """Records one RGB picture, such as a sample grid, of training step `step`."""

    def text(self, step: int, name: str, text: str) -> None:
        """Records a text, such as samples of a language model, of training step `step`."""

    def sync(self) -> None:
        """Makes what is recorded safe against the end of this process, before a checkpoint."""

    def close(self) -> None:
        """Ends the record; the writer is not used again."""


def _records(path: epath.Path) -> tuple[list[dict], int]:
    """Returns the JSON objects of a metrics file and the number of invalid (torn) lines."""
    records, bad = [], 0
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        else:
            bad += 1
    return records, bad


def read_metrics(path: str | os.PathLike) -> dict[str, dict[int, float | None]]:
    """Reads a run's `metrics.jsonl`.

    Args:
      path: the file; a missing file reads as empty, and torn lines are skipped.

    Returns:
      By metric name, its value by step in ascending order; None where it was not finite. Of two
      values for the same step the later line wins. `time` (unix seconds) is among the names.
    """
    metrics: dict[str, dict[int, float | None]] = {}
    for record in sorted(_records(epath.Path(path))[0], key=lambda record: record["step"]):
        for name, value in record.items():
            if name != "step" and (value is None or isinstance(value, int | float)):
                metrics.setdefault(name, {})[record["step"]] = value
    return metrics


def _scalar(name: str, value: Any) -> int | float:
    """Converts a number or 0-d array to a plain number; refuses other values and wrong names."""
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
        """Removes the lines that the run will write again, and opens the file for appending."""
        path = epath.Path(path)
        records, bad = _records(path)
        kept_records = [record for record in records if record["step"] <= start_step]
        content = "".join(json.dumps(record) + "\n" for record in kept_records).encode()
        if path.exists() and content != path.read_bytes():
            write_atomic(path, content)
            logger.info(
                "%s: dropped %d lines beyond step %d and %d torn ones",
                *(path.name, len(records) - len(kept_records), start_step, bad),
            )
        self._file = Growing(path)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line; a line of an evaluation, which is read back, is synced at once."""
        record: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
        for name, value in values.items():
            number = _scalar(name, value)
            record[name] = number if math.isfinite(number) else None
        self._file.write(json.dumps(record) + "\n")
        if any(name.startswith("eval/") for name in values):
            self._file.sync()

    def images(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """Ignores pictures: `samples/` and the other writers have them."""

    def text(self, step: int, name: str, text: str) -> None:
        """Ignores texts: each is in a file of its own."""

    def sync(self) -> None:
        """Uploads what is not in object storage yet."""
        self._file.sync()

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

    def text(self, step: int, name: str, text: str) -> None:
        """Writes one event for TensorBoard's text tab, indented to be verbatim in Markdown."""
        shown = "".join(f"    {line}\n" for line in text.splitlines())
        kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        content = TensorProto(dtype="DT_STRING", string_val=[shown.encode()])
        value = Summary.Value(tag=name, metadata=kind, tensor=content)
        self._write(Event(step=int(step), summary=Summary(value=[value])))

    def sync(self) -> None:
        """Does nothing: each event is on the disk."""

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()


def require_wandb() -> None:
    """Raises ConfigError if the package wandb is not installed."""
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "log.wandb=True needs the package wandb, which is not installed: run "
            "GENJAX_EXTRAS=wandb launch/local.sh with the same arguments (or pip install "
            "wandb), or turn it off with --config.log.wandb=False."
        ) from error


class WandbWriter:
    """A Weights & Biases run; a resumed run continues the same one (id in `workdir/wandb_id`).

    Args:
      project: the project's name (`log.wandb_project`).
      config: the run's config as nested dicts, shown with the run.
      workdir: folder of the run.

    Raises:
      ConfigError: the package wandb is not installed, or it refuses, for example without a key.
    """

    def __init__(self, project: str, config: Mapping[str, Any], workdir: str | os.PathLike):
        """Starts the run, or continues it."""
        require_wandb()
        from wandb import Error, Html, Image, init

        self._image, self._html = Image, Html
        marker = epath.Path(workdir) / "wandb_id"
        name = marker.read_text().strip() if marker.exists() else uuid.uuid4().hex[:12]
        try:
            self._run = init(
                project=project,
                id=name,
                resume="allow",
                config=dict(config),
                dir=str(workdir) if is_local(workdir) else None,
                name=absolute(workdir).name,
            )
        except Error as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"log.wandb=True: Weights & Biases refuses ({reason}). Run `wandb login`, or set "
                "WANDB_API_KEY, or WANDB_MODE=offline to log to local files only; or turn it off "
                "with --config.log.wandb=False."
            ) from error
        write_atomic(marker, name.encode())
        # Our own step as the axis: wandb's would refuse the steps that a resumed run repeats.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs the scalars under their names."""
        numbers = {name: _scalar(name, value) for name, value in values.items()}
        self._run.log({"step": int(step), **numbers})

    def images(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """Logs the picture under its name."""
        self._run.log({"step": int(step), name: self._image(picture)})

    def text(self, step: int, name: str, text: str) -> None:
        """Logs the text under its name."""
        self._run.log({"step": int(step), name: self._html(f"<pre>{html.escape(text)}</pre>")})

    def sync(self) -> None:
        """Does nothing: W&B uploads from a process of its own."""

    def close(self) -> None:
        """Finishes the run (uploads what is left)."""
        self._run.finish()


class Writers:
    """Hands everything to each of several writers, in order; `Writers([])` writes nothing."""

    def __init__(self, writers: Sequence[Writer]):
        """Takes the writers, in the order in which they are called."""
        self._writers = list(writers)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Records the scalars `values` of training step `step` everywhere."""
        for writer in self._writers:
            writer.scalars(step, values)

    def images(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """Records one RGB picture everywhere."""
        for writer in self._writers:
            writer.images(step, name, picture)

    def text(self, step: int, name: str, text: str) -> None:
        """Records a text everywhere."""
        for writer in self._writers:
            writer.text(step, name, text)

    def sync(self) -> None:
        """Makes what is recorded safe everywhere."""
        for writer in self._writers:
            writer.sync()

    def close(self) -> None:
        """Closes every writer, even if an earlier one fails."""
        with contextlib.ExitStack() as stack:
            for writer in self._writers:
                stack.callback(writer.close)
