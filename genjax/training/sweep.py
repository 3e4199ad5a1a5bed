"""Measurements of samples over a sampling option: a table, charts, and files of both."""

from __future__ import annotations

import html
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from genjax.files import parse_json, write_atomic
from genjax.training.chart import curves_chart, number
from genjax.training.page import STYLE, document

logger = logging.getLogger("genjax")

FILES = ("solvers.json", "guidance.json")  # in a run's folder, shown in its report
HEAD = 30  # pixels for the title over a chart in its own file
Row = Mapping[str, Any]


class Sweep(NamedTuple):
    """Rows of measurements, and how to show them.

    Attributes:
      title: of the section.
      note: what was measured, in plain sentences.
      curve: the columns that name a curve.
      over: the column on the charts' x axis, and its name there.
      charts: column -> title of its chart.
      columns: the columns of the printed table and of the page's table.
      rows: column -> value; a number that is not finite is None.
    """

    title: str
    note: str
    curve: tuple[str, ...]
    over: tuple[str, str]
    charts: Mapping[str, str]
    columns: tuple[str, ...]
    rows: Sequence[Row] = ()


def finite(row: Row) -> dict[str, Any]:
    """Returns the row for JSON: numbers that are not finite become None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def line(columns: Sequence[str], row: Row | None = None) -> str:
    """Returns a line of the printed table: a row, or the header if there is no row."""
    cells = []
    for name in columns:
        value = name if row is None else row.get(name)
        width = max(len(name), 9) + 2
        if row is not None and (value is None or isinstance(value, int | float)):
            value = "–" if name not in row else number(value)
        cells.append(f"{value:>{width}}" if name not in ("solver", "spacing") else f"{value:16}")
    return "".join(cells).rstrip()


def charts(sweep: Sweep) -> dict[str, str]:
    """Column -> its chart, as an `<svg>` element; a curve has one colour in all of them."""
    key, over = sweep.over
    labels = [" ".join(str(row[c]) for c in sweep.curve) for row in sweep.rows]
    svgs = {}
    for metric, title in sweep.charts.items():
        curves = {label: [] for label in labels}
        for label, row in zip(labels, sweep.rows, strict=True):
            if metric in row:
                curves[label].append((row[key], row[metric]))
        if any(curves.values()):
            ordered = {n: sorted(points, key=lambda p: p[0]) for n, points in curves.items()}
            svgs[metric] = curves_chart(title, ordered, over)
    return svgs


def section(sweep: Sweep) -> str:
    """Returns the charts and the table as HTML."""
    drawn = charts(sweep)
    cards = "".join(
        f'<div class="card plot"><header><h3>{html.escape(sweep.charts[metric])}</h3></header>'
        f"{svg}</div>"
        for metric, svg in drawn.items()
    )
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in sweep.columns)
    rows = "".join(
        "<tr>" + "".join(_cell(name, row) for name in sweep.columns) + "</tr>" for row in sweep.rows
    )
    return (
        f'<h2>{html.escape(sweep.title)}</h2><p class="soft">{html.escape(sweep.note)}</p>'
        f'<div class="charts">{cards}</div><details><summary>Table</summary>'
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>'
        "</table></div></details>"
    )


def _cell(name: str, row: Row) -> str:
    value = row.get(name)
    if isinstance(value, str):
        return f'<td class="mono">{html.escape(value)}</td>'
    return f'<td class="num">{number(value) if name in row else "–"}</td>'


def sections(folder: epath.Path) -> list[str]:
    """Returns the sections of a folder's sweeps; a damaged one is left out with a warning."""
    shown = []
    for name in FILES:
        if (path := folder / name).exists():
            try:
                shown.append(section(Sweep(**parse_json(path.read_bytes()))))
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                logger.warning("left out of the report: %s (%s)", path, error)
    return shown


def measure(
    sweep: Sweep, folder: epath.Path, name: str, rows: Sequence[Callable[[], Row]], tell: bool
) -> Sweep:
    """Measures and prints row by row, and writes the table and the charts to files.

    They are `<name>.jsonl`, one row per line, written again after every row; `<name>.json`, the
    whole sweep; and `<name>_<column>.svg`.

    Args:
      sweep: the sweep without rows.
      folder: where the files go; made if missing.
      name: the name of the files.
      rows: functions that measure one row each.
      tell: whether this process prints and writes.
    """
    if tell:
        print(line(sweep.columns), flush=True)
    done: list[Row] = []
    for measured in rows:
        done.append(finite(measured()))
        if tell:
            print(line(sweep.columns, done[-1]), flush=True)
            lines = "".join(json.dumps(row) + "\n" for row in done)
            write_atomic(folder / f"{name}.jsonl", lines.encode())
    whole = sweep._replace(rows=done)
    if tell:
        write_atomic(folder / f"{name}.json", json.dumps(whole._asdict(), indent=1).encode())
        for metric, svg in charts(whole).items():
            write_atomic(folder / f"{name}_{metric}.svg", alone(svg, whole.charts[metric]).encode())
    return whole


def alone(svg: str, title: str) -> str:
    """Returns a chart as an SVG file, with its title and the page's colours."""
    start, end = svg.split(">", 1)
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', start).groups())
    start = start.replace(f'"0 0 {width} {height}"', f'"0 -{HEAD} {width} {height + HEAD}"')
    paper = f'<rect y="-{HEAD}" width="100%" height="100%" style="fill:var(--card)"/>'
    style = "svg{font-family:system-ui,sans-serif}.title{fill:var(--ink);font-size:14px}"
    text = f'<text class="title" x="8" y="{20 - HEAD}">{html.escape(title)}</text>'
    begin = start.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{begin}><style>{STYLE}{style}</style>{paper}{text}{end}\n"


def page(sweep: Sweep) -> str:
    """Returns the section as a page of its own."""
    return document(sweep.title, section(sweep))
