"""`report.html`: one self-contained page that shows a run without a network."""

from __future__ import annotations

import base64
import html
import importlib.metadata
import io
import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath
from PIL import Image

from genjax.config import flatten
from genjax.files import absolute, size, write_atomic
from genjax.nn.cpu import onednn
from genjax.training.chart import line_chart, number
from genjax.training.metrics import read_metrics
from genjax.training.page import document
from genjax.training.sweep import sections

logger = logging.getLogger("genjax")

MAX_PICTURES = 12  # pictures or texts of a family
MAX_BYTES = 8_000_000  # total size of their files
SHOWN = (".png", ".txt", ".wav")  # endings of sample files, in order of preference
THUMBNAIL = 152  # pixels, twice what is shown
CRISP_BELOW = 640  # pixels: a narrower picture is enlarged without smoothing
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets"),
    "numpy",
)

Curve = dict[int, float | None]

# The main metrics, in the order in which they are shown: patterns of the last part of the name.
FIRST = (
    *(r"fid|fd_\w+", r"kid(_\w+)?", r"(binary_)?bits_per_dim|bits_per_byte|bits_per_\w+"),
    *(r"perplexity|ppl", r"bleu|chrf|rouge\w*|wer|cer", r"log_likelihood|elbo|nll", r"accuracy"),
    *(r"precision\w*", r"recall\w*", r"density\w*|coverage\w*", r"psnr|ssim|lpips|mse|mae"),
    *(r"(lowest_)?code_perplexity", r"diversity\w*|self_bleu\w*|score\w*|distinct\w*"),
)
# What says nothing about quality.
UNSAID = re.compile(
    r"_(se|std)$|^seconds$|^examples_per_second$|^mfu$|^peak_memory_bytes$|^seconds_to_first_step$"
)
TILES = 6
# Metrics of which lower, or higher, values are better, by the words of their names.
LOWER = re.compile(
    r"loss|nll|bits|bpd|perplexity|ppl|^fd_|fid|kid|err|mse|mae|rmse|wer|cer|lpips|distance"
)
HIGHER = re.compile(
    r"accuracy|acc|psnr|ssim|inception_score|precision|recall|density|coverage|f1|bleu|rouge|auc"
    r"|elbo|likelihood|code_perplexity|code_usage"
)
# Neither is better for a spread, nor for the accuracy of one player of a game.
NEITHER = re.compile(r"_(se|std)$|^(real|fake|pair)_accuracy|^self_bleu")


def _commit() -> str | None:
    """Returns the git commit of genjax's own checkout; None if it is not a checkout."""
    this_file = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        # `git status` would refresh the index, and leave its lock behind if it is cut short.
        command = ["git", "--no-optional-locks", "-C", str(this_file.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", this_file.name)  # not some other project around a .venv
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit} with uncommitted changes" if changed else commit


def _cpu() -> str:
    """The host processor's name and number of usable cores."""
    name = platform.processor() or platform.machine()
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = match.group(1) if match else name
    except OSError:
        logger.debug("no /proc/cpuinfo here")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def environment() -> dict[str, str]:
    """Returns what the run runs on: versions, devices, host, command and git commit, by name.

    Starts jax's backend if it has not started yet. Packages that are not installed are left out.
    """
    kinds = [device.device_kind for device in jax.devices()]
    devices = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    facts = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            logger.debug("%s is not installed", package)
    facts["devices"] = f"{devices} ({jax.default_backend()})"
    facts["processes"] = str(jax.process_count())
    facts["host"] = f"{platform.node()}, {platform.platform()}"
    facts["cpu"] = _cpu()
    if jax.default_backend() == "cpu":
        facts["products"] = onednn.in_use()
    facts["command"] = shlex.join(sys.orig_argv)
    commit = _commit()
    return facts | ({"git commit": commit} if commit else {})


def _breakable(name: str) -> str:
    """Escapes a metric's name and allows line breaks after "/" and "_"."""
    return re.sub(r"([/_])", r"\1<wbr>", html.escape(name))


def _extremes(name: str, curve: Curve) -> tuple[int | None, int | None, str]:
    """The steps of the lowest and highest finite value, and which is best: "low", "high", ""."""
    finite = [step for step, value in curve.items() if value is not None]
    if not finite:
        return None, None, ""
    last = name.rsplit("/", 1)[-1].lower()
    best = "high" if HIGHER.search(last) else "low" if LOWER.search(last) else ""
    lowest, highest = min(finite, key=curve.__getitem__), max(finite, key=curve.__getitem__)
    if NEITHER.search(last) or curve[lowest] == curve[highest]:  # a constant has no best
        best = ""
    return lowest, highest, best


def _importance(name: str) -> tuple[int, str]:
    """The key that sorts metrics by what they say about quality: see `FIRST`."""
    last = name.rsplit("/", 1)[-1].lower()
    places = [i for i, pattern in enumerate(FIRST) if re.fullmatch(pattern, last)]
    return (places[0] if places else len(FIRST) + bool(UNSAID.search(last)), name)


def _metric_table(metrics: Mapping[str, Curve]) -> str:
    if not metrics:
        return '<p class="soft">No metrics yet.</p>'
    rows = []
    for name, curve in metrics.items():
        step = max(curve)
        low, high, best = _extremes(name, curve)
        cells = [f'<td class="mono name">{html.escape(name)}</td>']
        for at, kind in ((step, ""), (low, "low"), (high, "high")):
            text = number(curve[at]) if at is not None else "–"
            mark = " best" if kind and kind == best else ""
            cells.append(f'<td class="num{mark}">{text}{" ★" if mark else ""}</td>')
            cells.append(f'<td class="num soft">{number(at) if at is not None else "–"}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(
        f'<th class="num">{head}</th><th class="num">at step</th>'
        for head in ("last", "lowest", "highest")
    )
    return (
        f'<div class="card scroll"><table><thead><tr><th>metric</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="soft">★ the best value, if the name says whether lower or higher is better.</p>'
    )


def _pairs(pairs: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><td class="mono">{html.escape(str(key))}</td>'
        f'<td class="mono any">{html.escape(str(value)) or "&quot;&quot;"}</td></tr>'
        for key, value in pairs.items()
    )
    return f'<div class="card scroll"><table><tbody>{rows}</tbody></table></div>'


def _charts(title: str, metrics: Mapping[str, Curve], steps: tuple[int, int]) -> str:
    if not metrics:
        return ""
    cards = []
    for name, curve in metrics.items():
        low, high, best = _extremes(name, curve)
        chosen = {"low": low, "high": high}.get(best)
        notes = [f"<b>{number(curve[max(curve)])}</b>"]
        if chosen not in (None, max(curve)) and name.startswith("eval/"):
            notes.append(f"best {number(curve[chosen])} at {number(chosen)}")
        lost = sum(value is None for value in curve.values())
        if lost:
            notes.append(f"{lost} not finite")
        shown = _breakable(name.split("/", 1)[-1])
        cards.append(
            f'<div class="card plot"><header><h3>{shown}</h3><span>{" · ".join(notes)}</span>'
            f"</header>{line_chart(name, curve, steps)}</div>"
        )
    return f'<h2>{title}</h2><div class="charts">{"".join(cards)}</div>'


def _families(folder: epath.Path) -> dict[str, dict[int, epath.Path]]:
    """Files `<name>_<step>` with an ending of `SHOWN`: by name, by step; "step" is "samples".

    If several have the same stem, the first ending counts; a sound is played below a picture.
    """
    families: dict[str, dict[int, epath.Path]] = {}
    paths = folder.iterdir() if folder.exists() else ()
    for path in sorted(p for p in paths if p.suffix in SHOWN):  # SHOWN is in this order too
        match = re.fullmatch(r"([^.].*)_(\d+)", path.stem)
        if match:
            name = "samples" if match[1] == "step" else match[1]
            families.setdefault(name, {}).setdefault(int(match[2]), path)
    order = sorted(families, key=lambda name: (name != "samples", name))
    return {name: dict(sorted(families[name].items())) for name in order}


def _choose(pictures: Mapping[int, epath.Path]) -> list[int]:
    """Chooses evenly spread steps, with the first and last: few, to keep the page small."""
    steps, count = list(pictures), min(len(pictures), MAX_PICTURES)
    while True:
        ends = max(count - 1, 1)
        picked = [steps[len(steps) - 1 - (len(steps) - 1) * i // ends] for i in range(count)]
        picked.reverse()
        files = [f for s in picked for f in (pictures[s], _sound(pictures[s])) if f is not None]
        if count == 1 or sum(size(file) for file in set(files)) <= MAX_BYTES:
            return picked
        count -= 1


def _sound(path: epath.Path) -> epath.Path | None:
    """Returns the sound file next to a file of samples, if there is one."""
    sound = path.with_suffix(".wav")
    return sound if sound.exists() else None


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _figure(path: epath.Path, alt: str) -> tuple[str, str] | None:
    """Returns a file as HTML, large and for a button; None if it cannot be read."""
    try:
        sound, player = _sound(path), ""
        if sound is not None:
            player = f'<audio controls src="{_data_uri(sound.read_bytes(), "audio/wav")}"></audio>'
        if path.suffix == ".wav":
            return player, ""
        if path.suffix == ".txt":
            return f"<pre>{html.escape(path.read_text(encoding='utf-8'))}</pre>{player}", ""
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            width, small = image.width, image.convert("RGB")
    except OSError as error:
        logger.warning("left out of the report: %s (%s)", path, error)
        return None
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    crisp = ' class="crisp"' if width < CRISP_BELOW else ""
    return (
        f'<img{crisp} alt="{alt}" src="{_data_uri(content, "image/png")}">{player}',
        f'<img alt="" src="{_data_uri(buffer.getvalue(), "image/jpeg")}">',
    )


def _viewer(name: str, files: Mapping[int, epath.Path]) -> str:
    """Shows the latest picture or text of a family, large, with buttons for earlier ones."""
    alts = {step: f"{html.escape(name)} at step {number(step)}" for step in _choose(files)}
    rendered = {step: _figure(files[step], alt) for step, alt in alts.items()}
    readable = {step: parts for step, parts in rendered.items() if parts}
    figures, buttons = [], []
    for step, (large, small) in readable.items():
        last = step == max(readable)
        hidden = "" if last else " hidden"
        figures.append(f'<figure class="view"{hidden}>{large}<p>step {number(step)}</p></figure>')
        buttons.append(
            f'<button type="button"{" class=on" if last else ""} title="{alts[step]}">'
            f"{small}{number(step)}</button>"
        )
    if not figures:
        return ""
    strip = f'<div class="strip">{"".join(buttons)}</div>' if len(buttons) > 1 else ""
    title = html.escape(name[:1].upper() + name[1:].replace("_", " "))
    return f'<h2>{title}</h2><div class="card viewer">{"".join(figures)}{strip}</div>'


def _header(
    config: Mapping[str, Any], workdir: epath.Path, step: int, total: int | None, finished: bool
) -> str:
    method = html.escape(str(config.get("method") or "run"))
    data = html.escape(str((config.get("dataset") or {}).get("name") or "unknown data"))
    share = 100 if finished else min(100, 100 * step / total) if total else 0
    state = f"step {number(step)}" + (f" of {number(total)}" if total else "")
    state += ", finished" if finished else ", not finished"
    done = " done" if finished else ""
    bar = f'<div class="bar{done}"><i style="width:{share:.1f}%"></i></div>' if total else ""
    written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return (
        f'<div class="head"><h1>{method} <span>on {data}</span></h1>'
        f'<span class="pill{done}">{state}</span></div>{bar}'
        f'<div class="soft"><code>{html.escape(str(workdir))}</code> · written {written}</div>'
    )


def _tiles(metrics: Mapping[str, Curve]) -> str:
    """Shows the latest numbers: the family's main metrics, the loss, the rate."""
    quality = [
        n for n in metrics if n.startswith("eval/") and not UNSAID.search(n.rsplit("/", 1)[-1])
    ]
    names = sorted(quality, key=_importance)[:TILES]
    names += [n for n in ("train/loss",) if n in metrics]
    names += [n for n in metrics if n.startswith("train/") and n.endswith("per_second")][:1]
    tiles = "".join(
        f'<div class="card tile"><b>{number(metrics[name][max(metrics[name])])}</b>'
        f"<span>{_breakable(name)}</span></div>"
        for name in names
    )
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def _data(data: Mapping[str, Any]) -> list[str]:
    """Describes the data: each field with its facts, and the splits."""
    rows = {}
    for name, field in data.get("fields", {}).items():
        facts = {k: v for k, v in field["facts"].items() if k not in ("tokenizer", "special") and v}
        fact_text = "".join(
            f"; {key}: {', '.join(map(str, v)) if isinstance(v, list) else v}"
            for key, v in facts.items()
        )
        mark = " (generated)" if name == data["target"] else ""
        rows[name + mark] = f"{field['kind']} {field['shape']} {field['dtype']}{fact_text}"
    rows |= {f"{split} examples": count for split, count in data.get("sizes", {}).items()}
    return [f"<details><summary>Data</summary>{_pairs(rows)}</details>"] if rows else []


def _stages(folder: epath.Path) -> list[str]:
    """Lists the stages that were trained under the workdir, with links to their reports."""
    rows = []
    stages = sorted(folder.iterdir()) if folder.exists() else ()
    for report in (stage / "report.html" for stage in stages if (stage / "report.html").exists()):
        metrics = read_metrics(report.with_name("metrics.jsonl"))
        last = {
            n: c[max(c)] for n, c in metrics.items() if n.startswith("eval/") and "_se" not in n
        }
        summary = ", ".join(f"{n.removeprefix('eval/')} {number(v)}" for n, v in last.items())
        name = html.escape(report.parent.name)
        link = f'<a href="stages/{name}/report.html">{name}</a>'
        rows.append(
            f'<tr><td class="mono">{link}</td><td class="any">{html.escape(summary)}</td></tr>'
        )
    if not rows:
        return []
    return [f'<h2>Stages</h2><div class="card scroll"><table>{"".join(rows)}</table></div>']


def write_report(
    workdir: str | os.PathLike,
    *,
    digest: str | None,
    environment: Mapping[str, Any],
    total: int | None = None,
    finished: bool = False,
    warnings: Sequence[str] = (),
) -> epath.Path:
    """Writes `workdir/report.html` atomically, from the files of the run in `workdir`.

    Reads `config.json` (its keys "config" and "data"), `metrics.jsonl`, the samples
    `samples/<name>_<step>.png`, `.txt` and `.wav`, the sweeps of `sweep.FILES`, and the reports of
    `stages/`; any of them may be missing or still empty.

    Args:
      workdir: the run's folder.
      digest: sha256 of the state, as `inspect` prints it; None if it was not computed.
      environment: facts by name, see `environment()`.
      total: the step that the run ends at, if known.
      finished: whether the run has finished.
      warnings: shown at the top.

    Returns:
      The page's path.

    Raises:
      OSError: the page cannot be written.
    """
    workdir = epath.Path(workdir)
    stored = workdir / "config.json"
    content = json.loads(stored.read_text()) if stored.exists() else {}
    config = content.get("config", {})
    metrics = read_metrics(workdir / "metrics.jsonl")
    metrics.pop("time", None)
    names = sorted(metrics, key=lambda name: ("loss" not in name, "grad_norm" not in name, name))
    eval_names = sorted(filter(lambda name: name.startswith("eval/"), metrics), key=_importance)
    evals = {name: metrics[name] for name in eval_names}
    train = {name: metrics[name] for name in names if name.startswith("train/")}
    # Standard errors and times are in the table; a curve of one says nothing.
    curves = {n: curve for n, curve in evals.items() if not UNSAID.search(n.rsplit("/", 1)[-1])}
    drawn = {n: c for n, c in curves.items() if len(c) > 1 or n.count("/") == 1}
    state = html.escape(digest or "not computed")
    families = _families(workdir / "samples")
    reached = [max(curve) for curve in metrics.values() or families.values()]
    step = max(reached, default=0)
    title = f"{config.get('method') or 'run'} on {(config.get('dataset') or {}).get('name')}"
    body = [
        _header(config, absolute(workdir), step, total, finished),
        *[f'<div class="card warning">{html.escape(text)}</div>' for text in warnings],
        _tiles(train | curves),
        *[_viewer(name, pictures) for name, pictures in families.items()],
        _charts("Evaluation", drawn, (0, step)),
        _charts("Training", train, (0, step)),
        f"<h2>Metrics</h2>{_metric_table(evals | train)}",
        *sections(workdir),
        *_stages(workdir / "stages"),
        *_data(content.get("data") or {}),
        f"<details><summary>Config</summary>{_pairs(flatten(config))}</details>",
        f"<h2>Environment</h2>{_pairs(environment)}",
        f'<h2>State</h2><div class="card digest">sha256 <code>{state}</code></div>',
    ]
    path = workdir / "report.html"
    write_atomic(path, document(title, "".join(body)).encode())
    return path
