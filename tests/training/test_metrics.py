"""Writers and grids, read back by readers that we did not write."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from genjax import pictures
from genjax.config import ConfigError
from genjax.training import metrics


def strict_lines(path):
    """The lines as strict JSON: NaN and Infinity are not JSON."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_jsonl_lines_are_json_with_step_time_and_values(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    writer = metrics.JsonlWriter(path, start_step=0)
    writer.scalars(1, {"train/loss": jnp.float32(0.5), "train/low": jnp.bfloat16(0.25)})
    writer.scalars(np.int64(2), {"train/loss": np.float64("nan"), "eval/fid": float("inf")})
    writer.scalars(3, {"train/skipped": jnp.int32(7)})
    lines = strict_lines(path)  # before close: every line is flushed
    writer.close()
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(abs(line.pop("time") - os.stat(path).st_mtime) < 60 for line in lines)
    assert lines[0] == {"step": 1, "train/loss": 0.5, "train/low": 0.25}
    assert lines[1] == {"step": 2, "train/loss": None, "eval/fid": None}
    assert lines[2]["train/skipped"] == 7


def test_jsonl_resume_drops_what_lies_beyond_the_checkpoint_and_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = metrics.JsonlWriter(path, start_step=0)
    for step in range(1, 8):
        writer.scalars(step, {"train/loss": step / 10})
    writer.close()
    with open(path, "a") as file:
        file.write('{"step": 4, "time": 1.0, "train/lo')
    resumed = metrics.JsonlWriter(path, start_step=5)
    resumed.scalars(6, {"train/loss": 66.0})
    resumed.close()
    lines = strict_lines(path)
    assert [(line["step"], line["train/loss"]) for line in lines] == [
        *((step, step / 10) for step in range(1, 6)),
        (6, 66.0),
    ]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_jsonl_keeps_a_whole_last_line_that_only_lacks_its_newline(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 1.5, "train/loss": 2.0}')
    writer = metrics.JsonlWriter(path, start_step=1)
    writer.scalars(2, {"train/loss": 1.0})
    writer.close()
    assert [line["train/loss"] for line in strict_lines(path)] == [2.0, 1.0]


def test_metrics_need_a_known_kind_of_name_and_a_scalar(tmp_path):
    writer = metrics.JsonlWriter(tmp_path / "metrics.jsonl", start_step=0)
    with pytest.raises(ValueError, match=r"'loss'.*'train/' or 'eval/'"):
        writer.scalars(1, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"'train/loss' has shape \(2,\)"):
        writer.scalars(1, {"train/loss": np.zeros(2)})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_read_metrics_orders_steps_and_passes_over_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 20, "time": 5.0, "train/loss": 1.0}\n'
        '{"step": 10, "time": 4.0, "train/loss": null, "eval/fid": 9}\n'
        '{"step": 20, "time": 6.0, "train/loss": 0.5}\n'
        "\0\0\0\n[1]\n"
        '{"step": 30, "ti'
    )
    read = metrics.read_metrics(path)
    assert read == {
        "time": {10: 4.0, 20: 6.0},
        "train/loss": {10: None, 20: 0.5},
        "eval/fid": {10: 9},
    }
    assert list(read["train/loss"]) == [10, 20]
    assert metrics.read_metrics(tmp_path / "none.jsonl") == {}


def crc32c(data):
    """Castagnoli's CRC, bit by bit, as RFC 3720 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def tensorboard_events(folder):
    """The events of the TFRecord files of a folder, checksums verified."""
    events = []
    for name in sorted(os.listdir(folder)):
        assert ".tfevents." in name
        content = io.BytesIO((folder / name).read_bytes())
        while head := content.read(8):
            (length,) = struct.unpack("<Q", head)
            (head_crc,) = struct.unpack("<I", content.read(4))
            data = content.read(length)
            (data_crc,) = struct.unpack("<I", content.read(4))
            assert (head_crc, data_crc) == (masked(head), masked(data))
            events.append(Event.FromString(data))
    return events


def test_tensorboard_events_read_back(tmp_path):
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the CRC catalogues
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    writer = metrics.TensorBoardWriter(tmp_path)
    writer.scalars(3, {"train/loss": jnp.float32(0.125), "train/nan": float("nan")})
    writer.images(4, "samples", picture)
    writer.text(5, "samples", "To be,\n  or not")
    before_close = tensorboard_events(tmp_path)
    writer.close()
    version, scalars, image, text = before_close
    assert version.file_version == "brain.Event:2"
    values = {value.tag: value.simple_value for value in scalars.summary.value}
    assert scalars.step == 3
    assert values["train/loss"] == 0.125
    assert np.isnan(values["train/nan"])
    (value,) = image.summary.value
    assert (image.step, value.tag) == (4, "samples")
    assert (value.image.height, value.image.width, value.image.colorspace) == (5, 7, 3)
    decoded = Image.open(io.BytesIO(value.image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(decoded), picture)
    (value,) = text.summary.value
    assert (text.step, value.tag, value.metadata.plugin_data.plugin_name) == (5, "samples", "text")
    assert value.tensor.string_val == [b"    To be,\n      or not\n"]


def test_tensorboard_resume_hides_later_steps_in_a_new_file(tmp_path):
    for start in (0, 7):
        writer = metrics.TensorBoardWriter(tmp_path, start_step=start)
        writer.scalars(8, {"train/loss": start})
        writer.close()
    assert len(os.listdir(tmp_path)) == 2
    starts = [e.step for e in tensorboard_events(tmp_path) if e.session_log.status]
    assert starts == [8]  # TensorBoard drops the earlier events from this step on
    assert SessionLog.START == 1


class FakeRun:
    def __init__(self):
        self.logged, self.axes, self.finished = [], [], False

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


def test_wandb_gets_everything_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    calls, runs = [], []

    def init(**options):
        calls.append(options)
        runs.append(FakeRun())
        return runs[-1]

    fake = types.SimpleNamespace(
        init=init,
        Image=lambda picture: ("image", picture.shape),
        Html=lambda page: page,
        Error=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        writer = metrics.WandbWriter("clothes", {"seed": 1}, tmp_path)
        writer.scalars(5, {"train/loss": jnp.float32(2.0)})
        writer.images(5, "samples", np.zeros((2, 3, 3), np.uint8))
        writer.text(5, "words", "a < b")
        writer.close()
    assert calls[0] == calls[1]
    assert calls[0]["project"] == "clothes"
    assert calls[0]["config"] == {"seed": 1}
    assert calls[0]["resume"] == "allow"
    assert calls[0]["id"]
    for run in runs:
        assert run.axes == [("*", "step")]
        assert run.logged == [
            {"step": 5, "train/loss": 2.0},
            {"step": 5, "samples": ("image", (2, 3, 3))},
            {"step": 5, "words": "<pre>a &lt; b</pre>"},
        ]
        assert run.finished


def test_wandb_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"GENJAX_EXTRAS=wandb launch/local\.sh"):
        metrics.WandbWriter("clothes", {}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_wandb_without_a_key_is_one_error(tmp_path, monkeypatch):
    class Refused(Exception):
        """As the package's own."""

    def init(**options):
        raise Refused("No API key configured. Use `wandb login` to log in.")

    fake = types.SimpleNamespace(init=init, Image=None, Html=None, Error=Refused)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(ConfigError, match=r"refuses \(No API key.*WANDB_MODE=offline"):
        metrics.WandbWriter("clothes", {}, tmp_path)
    assert not list(tmp_path.iterdir())


class Recorder:
    def __init__(self, fails=False):
        self.calls, self.fails = [], fails

    def scalars(self, step, values):
        self.calls.append((step, values))

    def images(self, step, name, picture):
        self.calls.append((step, name, picture))

    def text(self, step, name, text):
        self.calls.append((step, name, text))

    def close(self):
        self.calls.append("close")
        if self.fails:
            raise OSError("disk full")


def test_writers_fan_out_and_all_close_when_one_fails():
    recorders = [Recorder(), Recorder(fails=True), Recorder()]
    writers = metrics.Writers(recorders)
    writers.scalars(1, {"train/loss": 1.0})
    writers.images(2, "samples", "picture")
    writers.text(3, "samples", "words")
    with pytest.raises(OSError, match="disk full"):
        writers.close()
    for recorder in recorders:
        assert recorder.calls == [
            (1, {"train/loss": 1.0}),
            (2, "samples", "picture"),
            (3, "samples", "words"),
            "close",
        ]


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_each_picture(channels):
    images = np.random.default_rng(1).integers(0, 256, (5, 4, 6, channels)).astype(np.uint8)
    picture = pictures.grid(images)
    assert picture.shape == (2 * 4 + 2, 3 * 6 + 2 * 2, 3)
    assert picture.dtype == np.uint8
    rgb = np.broadcast_to(images, (5, 4, 6, 3))
    np.testing.assert_array_equal(picture[:4, 8:14], rgb[1])
    np.testing.assert_array_equal(picture[6:10, 0:6], rgb[3])
    np.testing.assert_array_equal(picture[6:10, 8:14], rgb[4])
    assert (picture[4:6] == picture[0, 6]).all()
    assert (picture[6:, 16:] == picture[0, 6]).all()


def test_grid_columns_and_bad_input():
    images = np.zeros((6, 4, 4, 1), np.uint8)
    assert pictures.grid(images, columns=6).shape == (4, 34, 3)
    assert pictures.grid(images[:1]).shape == (4, 4, 3)
    with pytest.raises(ValueError, match=r"float32 \[6, 4, 4, 1\]"):
        pictures.grid(images.astype(np.float32))
    with pytest.raises(ValueError, match="at least one picture"):
        pictures.grid(images[:0])


@pytest.mark.parametrize("shape", [(9, 5, 3), (9, 5, 1), (9, 5)])
def test_png_reads_back(tmp_path, shape):
    picture = np.random.default_rng(2).integers(0, 256, shape).astype(np.uint8)
    pictures.save_png(tmp_path / "samples" / "step_1.png", picture)
    with Image.open(tmp_path / "samples" / "step_1.png") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image).reshape(shape), picture)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    pictures.write_atomic(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        pictures.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.html"]
