"""The report: well-formed, self-contained, and with the run's own numbers and pictures."""

from __future__ import annotations

import base64
import html.parser
import importlib.metadata
import io
import json
import math
import os
import re
import shlex
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from genjax.pictures import grid, save_png
from genjax.training import chart, metrics, report

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"}


class Page(html.parser.HTMLParser):
    """Reads a page; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.tags, self.rows = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def write_run(workdir, *, config=None, lines=(), pictures=()):
    config = config or {"method": "diffusion", "dataset": {"name": "digits"}}
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(json.dumps({"config": config, "created": "today"}))
    writer = metrics.JsonlWriter(workdir / "metrics.jsonl", start_step=10**9)
    for step, values in lines:
        writer.scalars(step, values)
    writer.close()
    for seed, name in enumerate(pictures):
        noise = np.random.default_rng(seed).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
        save_png(workdir / "samples" / name, grid(noise))


def read(workdir, **options):
    options = {"digest": "abc123", "environment": {"python": "3.11.9"}} | options
    path = report.write_report(workdir, **options)
    assert path == workdir / "report.html"
    return Page(path.read_text())


def run_lines(count=2000):
    rng = np.random.default_rng(0)
    for step in range(10, 10 * count + 1, 10):
        yield step, {"train/loss": 0.03 + math.exp(-step / 300) + 0.003 * rng.normal()}
        if step % 5000 == 0:
            yield step, {"eval/bits_per_dim": 2.0 + 1e4 / step, "eval/accuracy": step / 4e4}


def test_page_has_the_numbers_config_environment_and_digest(tmp_path):
    config = {"method": "diffusion", "dataset": {"name": "digits"}, "optimizer": {"lr": 0.0002}}
    write_run(tmp_path, config=config, lines=run_lines())
    page = read(tmp_path, total=40000)
    text = " ".join(page.text)
    assert "diffusion" in text
    assert "digits" in text
    assert "step 20,000 of 40,000, not finished" in text
    assert "abc123" in text
    assert ["optimizer.lr", "0.0002"] in page.rows
    assert ["python", "3.11.9"] in page.rows
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 7}
    assert rows["eval/bits_per_dim"] == [
        *("2.500", "20,000", "2.500 ★", "20,000", "4", "5,000"),
    ]
    assert rows["eval/accuracy"] == [
        *("0.5000", "20,000", "0.1250", "5,000", "0.5000 ★", "20,000"),
    ]
    losses = {step: values["train/loss"] for step, values in run_lines() if "train/loss" in values}
    best = min(losses, key=losses.get)
    assert rows["train/loss"][2:4] == [f"{losses[best]:.5f} ★", f"{best:,}"]
    assert [p["class"] for p in page.all("span") if "class" in p] == ["pill"]
    done = read(tmp_path, total=20000, finished=True)
    assert "step 20,000 of 20,000, finished" in " ".join(done.text)


def test_tiles_show_first_what_the_family_is_judged_by(tmp_path):
    """Never how long an evaluation took, nor a standard error."""
    names = (
        "seconds",
        "accuracy",
        "fd_classifier_se",
        "zeal",
        "perplexity",
        "fd_classifier",
        "mse",
    )
    values = {f"eval/{name}": 1.5 for name in names} | {"train/loss": 2.0}
    write_run(tmp_path, lines=[(5, values), (10, values)])
    read(tmp_path)
    text = (tmp_path / "report.html").read_text()
    tiles = re.search(r'<div class="tiles">(.*?)<h2', text, re.DOTALL)[1].replace("<wbr>", "")
    shown = re.findall(r"<span>([^<]*)</span>", tiles)
    expected = ["fd_classifier", "perplexity", "accuracy", "mse", "zeal"]
    assert shown == [*[f"eval/{name}" for name in expected], "train/loss"]
    charts = text.partition("<h2>Evaluation</h2>")[2].partition("<h2>Training</h2>")[0]
    titles = re.findall(r"<h3>(.*?)</h3>", charts.replace("<wbr>", ""))
    assert titles == expected  # of charts, in the same order


def test_a_constant_has_no_best(tmp_path):
    lines = [(i, {"train/loss": 2.0, "eval/accuracy": 0.5}) for i in (1, 2, 3)]
    write_run(tmp_path, lines=lines)
    assert "★" not in " ".join(" ".join(row) for row in read(tmp_path).rows)


def test_page_loads_nothing_from_anywhere(tmp_path):
    config = {"method": "diffusion", "dataset": {"name": "https://example.com/x.npz"}}
    write_run(tmp_path, config=config, lines=run_lines(50), pictures=["step_000010.png"])
    page = read(tmp_path)
    loads = {"src", "href", "srcset", "data", "action", "poster", "xlink:href", "background"}
    found = [v for _, attributes in page.tags for k, v in attributes.items() if k in loads]
    assert found
    assert all(re.match(r"data:image/(png|jpeg);base64,", value) for value in found)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    text = (tmp_path / "report.html").read_text()
    code = re.findall(r"<(style|script)>(.*?)</\1>", text, re.DOTALL)
    assert len(code) == 2
    assert not any(re.search(r"//[a-z]|url\(|@import|fetch\(|import ", part) for _, part in code)


def test_pictures_are_grouped_in_order_and_whole(tmp_path):
    names = [f"step_{step:06d}.png" for step in range(0, 40, 2)]
    write_run(tmp_path, pictures=[*names, "reconstructions_3.png", "reconstructions_20.png"])
    (tmp_path / "samples" / "broken_7.png").write_bytes(b"no picture")
    (tmp_path / "samples" / "notes.txt").write_text("mine")
    page = read(tmp_path)
    assert [t for t in page.text if t in ("Samples", "Reconstructions", "Broken")] == [
        "Samples",
        "Reconstructions",
    ]
    whole = [a for a in page.all("img") if a["alt"]]
    assert len(whole) == report.MAX_PICTURES + 2
    assert (whole[0]["alt"], whole[11]["alt"]) == ("samples at step 0", "samples at step 38")
    assert [a["alt"] for a in whole[12:]] == [
        "reconstructions at step 3",
        "reconstructions at step 20",
    ]
    hidden = ["hidden" in a for a in page.all("figure")]
    assert hidden == [True] * 11 + [False, True, False]
    content = base64.b64decode(whole[11]["src"].split(",")[1])
    assert content == (tmp_path / "samples" / "step_000038.png").read_bytes()
    small = base64.b64decode([a for a in page.all("img") if not a["alt"]][11]["src"].split(",")[1])
    assert Image.open(io.BytesIO(small)).size == (18, 18)


def test_texts_are_shown_as_they_stand(tmp_path):
    write_run(tmp_path)
    (tmp_path / "samples").mkdir()
    for step, words in ((5, "first"), (10, "To be,\n  or <not>")):
        (tmp_path / "samples" / f"step_{step:08d}.txt").write_text(words)
    page = read(tmp_path)
    assert "Samples" in page.text
    assert ["hidden" in a for a in page.all("figure")] == [True, False]
    assert len(page.all("pre")) == 2
    assert "To be,\n  or <not>" in page.text


def test_big_pictures_do_not_make_the_page_big(tmp_path, monkeypatch):
    names = [f"step_{step}.png" for step in range(10)]
    write_run(tmp_path, pictures=names)
    size = (tmp_path / "samples" / "step_0.png").stat().st_size
    monkeypatch.setattr(report, "MAX_BYTES", int(3.5 * size))
    whole = [a["alt"] for a in read(tmp_path).all("img") if a["alt"]]
    assert len(whole) == 3
    assert (whole[0], whole[-1]) == ("samples at step 0", "samples at step 9")


@pytest.mark.parametrize("missing", ["nothing yet", "no config", "one point"])
def test_a_young_run_has_a_page(tmp_path, missing):
    if missing == "no config":
        assert "No metrics yet." in " ".join(read(tmp_path, digest=None).text)
        return
    lines = [(5, {"train/loss": -1.25})] if missing == "one point" else []
    write_run(tmp_path, lines=lines)
    page = read(tmp_path, digest=None, environment={})
    assert "not computed" in page.text
    assert len(page.all("circle")) == len(lines)


def test_values_that_were_not_finite_are_told_and_break_the_line(tmp_path):
    values = [1.0, 2.0, math.nan, math.inf, 3.0, 2.5]
    lines = [(i, {"train/loss": v, "train/bad": math.nan}) for i, v in enumerate(values)]
    write_run(tmp_path, lines=lines)
    page = read(tmp_path)
    text = " ".join(page.text)
    assert "2 not finite" in text
    assert "never finite" in text
    (raw,) = [a["d"] for a in page.all("path") if a.get("class") == "raw"]
    assert raw.count("M") == 2
    (lost,) = [a["d"] for a in page.all("path") if a.get("class") == "lost"]
    assert lost.count("M") == 2
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 7}
    assert rows["train/bad"] == ["not finite", "5", "–", "–", "–", "–"]


def test_text_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    write_run(
        tmp_path,
        config={"method": evil, "dataset": {"name": evil}, "model": {evil: evil}},
        lines=[(1, {f"train/{evil}": 1.0}), (2, {f"train/{evil}": 2.0})],
        pictures=[f"{evil.replace('/', '')}_3.png"],
    )
    page = read(tmp_path, digest=evil, environment={evil: evil})
    assert len(page.all("script")) == 1
    assert [f"model.{evil}", evil] in page.rows
    assert [evil, evil] in page.rows
    assert "".join(page.text).count(evil) >= 8
    assert [a["aria-label"] for a in page.all("svg")] == [f"train/{evil} over training steps"]


def test_page_is_replaced_whole(tmp_path, monkeypatch):
    write_run(tmp_path, lines=[(1, {"train/loss": 1.0})])
    read(tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        read(tmp_path, digest="other")
    assert (tmp_path / "report.html").read_bytes() == before


def test_environment_tells_versions_devices_and_command():
    facts = report.environment()
    assert facts["python"] == sys.version.split()[0]
    assert facts["jax"] == jax.__version__
    for package in ("jaxlib", "flax", "optax", "orbax-checkpoint"):
        assert facts[package] == importlib.metadata.version(package)
    assert facts["devices"].startswith(f"{jax.device_count()} x ")
    assert facts["command"] == shlex.join(sys.orig_argv)
    assert re.fullmatch(
        r"[0-9a-f]{40}( with uncommitted changes)?", facts.get("git commit", "0" * 40)
    )


def test_chart_puts_points_where_they_belong():
    svg = chart.line_chart("train/x", {0: 0.0, 50: 10.0, 100: 5.0}, (0, 100))
    (path,) = re.findall(r'class="raw" d="([^"]*)"', svg)
    points = np.array([[float(n) for n in p.split()] for p in re.split("[ML]", path)[1:]])
    assert points[0, 0] == chart.LEFT
    assert points[2, 0] == chart.WIDTH - chart.RIGHT
    assert points[1, 0] == np.mean(points[[0, 2], 0])
    assert points[0, 1] == chart.HEIGHT - chart.BOTTOM  # zero lies on the axis
    np.testing.assert_allclose(points[2, 1], points[:2, 1].mean(), atol=0.06)
    ticks = dict(re.findall(r' y="([\d.]+)" text-anchor="end">([\d.]+)<', svg))
    heights = {float(text): float(y) - 4 for y, text in ticks.items()}
    np.testing.assert_allclose(heights[10], points[1, 1], atol=0.06)
    (data,) = re.findall(r"data-points='([^']*)'", svg)
    assert [p[2:] for p in json.loads(data)] == [[0, "0"], [50, "10"], [100, "5"]]


def test_chart_turns_logarithmic_when_few_values_dwarf_the_rest():
    falling = {step: max(0.01, 10.0 ** -(step / 10)) for step in range(100)}
    svg = chart.line_chart("train/loss", falling, (0, 99))
    assert "log scale" in svg
    labels = {float(t): float(y) for y, t in re.findall(r' y="([\d.]+)" [^>]*end">([\d.]+)<', svg)}
    assert labels[0.1] - labels[1] == pytest.approx(labels[0.01] - labels[0.1], abs=0.2)
    assert "log scale" not in chart.line_chart("x", {0: -1.0, 1: 1e3, 2: 0.5}, (0, 2))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-7, 18, [-5, 0, 5, 10, 15]), (0, 18000, None)],
)
def test_ticks_are_round_numbers(low, high, ticks):
    found = chart.nice_ticks(low, high)
    assert found == (ticks or [0, 5000, 10000, 15000])


def test_smoothing_keeps_ramps_and_calms_noise():
    ramp = np.linspace(3, 7, 400)
    np.testing.assert_allclose(chart.smooth(ramp)[:390], ramp[:390])
    noise = np.random.default_rng(0).normal(size=25 * 400)
    assert chart.smooth(noise)[400:-400].std() == pytest.approx(1 / 20, rel=0.2)
    np.testing.assert_allclose(chart.smooth(np.array([2.0])), [2.0])
    assert chart.is_noisy(noise)
    assert not chart.is_noisy(ramp)


def test_thinning_keeps_spikes_and_ends():
    values = np.random.default_rng(0).normal(size=30000)
    values[12345], values[23456] = 50, -50
    kept = chart.thin(values)
    assert len(kept) <= chart.MAX_POINTS
    assert {0, 12345, 23456, 29999} <= set(kept)
    assert kept == sorted(kept)
    assert chart.thin(values[:100]) == list(range(100))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0, "0"), (12000.0, "12,000"), (0.03125, "0.03125"), (2.4213, "2.421")],
        *[(1.5e-6, "1.500e-06"), (1234.56, "1,235"), (-0.5, "-0.5000"), (3e12, "3.000e+12")],
        (None, "not finite"),
    ],
)
def test_numbers_read_as_people_write_them(value, text):
    assert chart.number(value) == text


@pytest.mark.parametrize("content", ["[" * 200_000, '{"title": 1}', "[]", "{"])
def test_a_sweep_that_is_damaged_is_left_out_and_said(tmp_path, caplog, content):
    (tmp_path / "solvers.json").write_text(content)
    page = report.write_report(tmp_path, digest=None, environment={}).read_text()
    assert "<html" in page
    assert "left out of the report" in caplog.text
