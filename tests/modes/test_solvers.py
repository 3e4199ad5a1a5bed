"""--mode=solvers and --mode=sweep_guidance, of a tiny run and of a mixture with its exact score."""

from __future__ import annotations

import html
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax import main
from genjax.config import ConfigError
from genjax.data import catalogue
from genjax.evals import features
from genjax.evals.judges import Judge
from genjax.methods import diffusion_sampling
from genjax.modes import mixture as mixture_mode
from genjax.modes.measured import Opened
from genjax.modes.mixture import distance, trajectory
from genjax.modes.solvers import intervals_of, numbers
from genjax.sampling import grids, mixture, paths, solvers
from genjax.sampling.table import alike, solve
from genjax.training import sweep, workdir
from genjax.training.sweep import Sweep

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(64, 6)).astype(np.float32)
TINY = [
    "--config=configs/ddpm.py:tiny",
    "--config.duration=6_steps",
    "--config.batch_size=16",
    "--config.evals.limit=16",
    "--config.evals.samples=0",
    "--config.evals.judges=",
    "--config.schedule.warmup=2_steps",
    "--config.diffusion.class_conditional=True",
    "--config.diffusion.num_timesteps=0",
    "--config.diffusion.eval_timesteps=1",
    "--config.diffusion.steps=2",
    "--config.model.denoiser.channels=8",
    "--config.model.denoiser.multipliers=(1,)",
    "--config.model.denoiser.attention=()",
    "--config.mesh.data=8",
]
JUDGED = ["--config.evals.judges=fidelity", "--num=32"]


def apply(weights, images):
    out = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255 @ weights
    return out[:, :3], out[:, 3:]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("solvers")


@pytest.fixture(autouse=True)
def extractor(place, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(place))
    made = features.Features("classifier", 3, WEIGHTS, apply, "0" * 64)
    monkeypatch.setattr(features, "build", lambda name, dataset, inception_path="": made)


@pytest.fixture(scope="module")
def run(place):
    """The workdir of a conditional run of six steps in continuous time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENJAX_DATA", str(place))
        assert main.main([*TINY, f"--workdir={place / 'run'}"]) == 0
    return place / "run"


@pytest.fixture
def traced(monkeypatch):
    """How often the loop of the samplers was traced: a program is compiled for each time."""
    found = []

    def counted(*arguments, **named):
        found.append(named["stochastic"])
        return solve(*arguments, **named)

    for module in (diffusion_sampling, mixture_mode):
        monkeypatch.setattr(module, "solve", counted)
    return found


def points(text):
    """The numbers under the pointer, of every chart with several curves."""
    found = re.findall(r"data-points='([^']*)'", text)
    return [p for data in found for p in json.loads(html.unescape(data)) if len(p) == 5]


def test_solvers_of_a_run_are_measured_by_one_program_and_one_for_noise(run, traced, capsys):
    flags = ["--samplers=ddim,heun,dpm++_2m_sde", "--calls=4,12", *JUDGED]
    assert main.main([f"--workdir={run}", "--mode=solvers", *flags]) == 0
    assert sorted(traced) == [False, True]
    rows = [json.loads(line) for line in (run / "solvers.jsonl").read_text().splitlines()]
    assert rows == json.loads((run / "solvers.json").read_text())["rows"]
    found = {(row["solver"], row["calls"]): row for row in rows}
    assert [(*key, row["steps"]) for key, row in found.items()] == [
        *(("ddim", 4, 4), ("ddim", 12, 12), ("heun", 3, 2), ("heun", 11, 6)),
        *(("dpm++_2m_sde", 4, 4), ("dpm++_2m_sde", 12, 12)),
    ]
    assert 0 < found["ddim", 12]["error"] < found["ddim", 4]["error"] < 255
    assert 0 < found["heun", 11]["error"] < found["heun", 3]["error"]
    assert "error" not in found["dpm++_2m_sde", 12]
    said = capsys.readouterr().out
    report = (run / "report.html").read_text()
    drawn = points(report)
    assert len(drawn) == 4 + 6
    for row in rows:
        name = f"{row['solver']}, {row['calls']} network calls"
        assert sweep.number(row["fd_classifier"]) in [p[3] for p in drawn if p[4] == name]
        assert f"{row['solver']:16}uniform" in said
        assert sweep.number(row["fd_classifier"]) in said
    assert "sha256 <code>" in report
    chart = (run / "solvers_error.svg").read_text()
    assert len(points(chart)) == 4
    assert chart.startswith('<svg xmlns="http://www.w3.org/2000/svg"')


def test_guidance_is_swept_by_one_program(run, traced):
    flags = ["--scales=1,3", "--intervals=0:inf,0.5:2", "--sampler=ddim", "--steps=5", *JUDGED]
    assert main.main([f"--workdir={run}", "--mode=sweep_guidance", *flags]) == 0
    assert len(traced) == 1
    rows = json.loads((run / "guidance.json").read_text())["rows"]
    found = {(row["interval"], row["scale"]): row["fd_classifier"] for row in rows}
    assert found["0:inf", 1] == pytest.approx(found["0.5:2", 1])
    assert len({round(value, 6) for value in found.values()}) == 3
    # Without guidance it is what the other mode says of the same solver.
    flags = ["--samplers=ddim", "--calls=5", *JUDGED]
    assert main.main([f"--workdir={run}", "--mode=solvers", *flags]) == 0
    (row,) = json.loads((run / "solvers.json").read_text())["rows"]
    assert row["fd_classifier"] == pytest.approx(found["0:inf", 1], rel=1e-3)
    report = (run / "report.html").read_text()
    assert "<h2>Solvers</h2>" in report
    assert "<h2>Guidance</h2>" in report
    assert "precision_classifier" in report


def test_a_table_has_distances_and_the_kinds_asked_for():
    fidelity = ("fd_classifier", "fd_classifier_se", "precision_classifier", "kid_classifier")
    attributes = ("attribute_accuracy", "attribute_accuracy_se", "hair_accuracy")
    judges = tuple(Judge(None, names, 10) for names in (fidelity, attributes))
    opened = Opened(*[None] * 8, judges)
    expected = ["fd_classifier", "precision_classifier", "attribute_accuracy"]
    assert opened.metrics("precision", "attribute_accuracy") == expected
    assert opened._replace(judges=judges[1:]).metrics("recall") == ["attribute_accuracy"]


def test_solvers_of_the_mixture(tmp_path, traced, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--samplers=ddim,heun,unipc_3,ddpm", "--calls=10,40", "--num=512"]
    assert main.main(["--mode=solvers", *flags]) == 0
    assert sorted(traced) == [False, True]
    rows = json.loads((tmp_path / "solvers" / "solvers.json").read_text())["rows"]
    found = {(row["solver"], row["calls"]): row for row in rows}
    assert set(found) == {(s, c) for s in ("ddim", "unipc_3", "ddpm") for c in (10, 40)} | {
        ("heun", 9),
        ("heun", 39),
    }
    error = {key: row["error"] for key, row in found.items() if "error" in row}
    assert error["unipc_3", 40] < error["heun", 39] < error["ddim", 40] < error["ddim", 10]
    assert error["unipc_3", 40] < 0.01
    assert found["ddpm", 40]["distance"] < found["ddpm", 10]["distance"]
    page = (tmp_path / "solvers" / "solvers.html").read_text()
    assert len(points(page)) == 6 + 8
    assert "exact draws have a distance of" in capsys.readouterr().out
    again = ["--samplers=heun", "--calls=10", "--path=flow", f"--output={tmp_path / 'flow'}"]
    assert main.main(["--mode=solvers", "--num=64", *again]) == 0
    assert (tmp_path / "flow" / "solvers_distance.svg").exists()


@pytest.mark.parametrize("name", ["cosine", "edm", "flow"])
def test_the_trajectory_of_one_gaussian_is_linear(name):
    """(x - alpha mu) / sqrt(alpha^2 s^2 + sigma^2) is the same all along the way."""
    one, path = mixture.ring(1, radius=0.7, deviation=0.3), paths.make(name)
    at = paths.levels(path, path.last)
    start = float(at.sigma) * RNG.normal(size=(32, 2))
    deviation = np.sqrt((at.alpha * one.deviation) ** 2 + at.sigma**2)
    expected = one.centres + one.deviation * (start - at.alpha * one.centres) / deviation
    np.testing.assert_allclose(trajectory(one, path, start), expected, atol=1e-5)


def test_the_distance_of_components_is_that_of_their_gaussians():
    m, unit = mixture.ring(4), RNG.normal(size=(4, 50, 2))
    # Of mean 0 and covariance 1 to rounding.
    unit -= unit.mean(1, keepdims=True)
    whiten = np.linalg.inv(np.linalg.cholesky(np.stack([np.cov(u.T) for u in unit])))
    unit = unit @ whiten.transpose(0, 2, 1)

    def shifted(scale, away):
        return (m.centres[:, None] + m.deviation * (scale * unit + away)).reshape(-1, 2)

    assert distance(m, shifted(1, 0)) == pytest.approx(0, abs=1e-12)
    assert distance(m, shifted(2, 0)) == pytest.approx(2)  # (2 - 1)^2 on each of two axes
    assert distance(m, shifted(1, np.array([0.5, 0]))) == pytest.approx(0.25)
    assert distance(m, shifted(1, 0)[:150]) == pytest.approx(2 / 4)  # one has no point


def test_tables_of_one_shape_draw_what_each_would_alone():
    m, path, keys = mixture.ring(), paths.make("cosine"), jax.random.split(jax.random.key(0), 8)
    names = ("heun", "pndm", "unipc_3", "dpm++_3m_sde")
    tables = []
    for count, name in enumerate(names, 5):
        grid = grids.grid(path, grids.times(path, count, "lambda"))
        tables.append(solvers.SOLVERS[name].table(path, grid))
    traces = []

    @jax.jit
    def draw(table):
        traces.append(table)

        def denoise(x, at, memory):
            return mixture.predict(m, x, at), memory

        return solve(denoise, table, keys, (2,))

    shared = [draw(table) for table in alike(tables)]
    assert len(traces) == 1
    for table, found, name in zip(tables, shared, names, strict=True):
        np.testing.assert_allclose(found, draw(table), atol=1e-5, err_msg=name)
    assert len(traces) == 5


@pytest.mark.parametrize("name", list(solvers.SOLVERS))
def test_as_many_steps_as_the_calls_allow(name):
    path = paths.make("edm")

    def table(steps):
        return solvers.SOLVERS[name].table(
            path, grids.grid(path, grids.times(path, steps, "lambda"))
        )

    least = solvers.SOLVERS[name].least
    calls = {steps: table(steps).calls for steps in range(least, 24)}
    for most in (1, 2, 5, 12, 13, 14, 22):
        fit = [steps for steps, count in calls.items() if count <= most]
        if not fit:
            with pytest.raises(ConfigError, match=f"calls={most}: solver {name} takes 13 in"):
                solvers.steps_for(name, most, table)
            continue
        steps, made = solvers.steps_for(name, most, table)
        assert (steps, made.calls) == (max(fit), calls[max(fit)])
    assert solvers.steps_for(name, 100, table, most=6)[0] == 6


def test_curves_that_were_not_finite_leave_gaps():
    rows = [{"a": "x", "n": n, "y": v} for n, v in enumerate((1.0, float("nan"), 3.0))]
    blank = Sweep("T", "", ("a",), ("n", "calls"), {"y": "<Y>"}, ("a", "n", "y"))
    whole = blank._replace(rows=[sweep.finite(row) for row in rows])
    assert [p[2:4] for p in points(sweep.section(whole))] == [[0, "1"], [2, "3"]]
    assert "&lt;Y&gt;" in sweep.section(whole)
    assert "not finite" in sweep.line(whole.columns, whole.rows[1])
    never = blank._replace(rows=[sweep.finite(rows[1])])
    assert "never finite" in sweep.section(never)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mode=solvers", "--samplers=dpm_2m", *JUDGED], "Nearest: dpm.._2m"),
        (["--mode=solvers", "--calls=5,x", *JUDGED], "--calls='5,x': expected whole numbers"),
        (["--mode=solvers"], "config.evals.judges is empty"),
        (["--mode=solvers", "--spacings=karas", *JUDGED], "Nearest: karras"),
        (["--mode=solvers", "--sampler=ddim", *JUDGED], "--sampler: .* by --samplers"),
        (["--mode=solvers", "--scales=1", *JUDGED], "--scales belongs to --mode=sweep_guidance"),
        (["--mode=solvers", "--output=x", *JUDGED], "--output='x': expected none"),
        (["--mode=sweep_guidance", "--intervals=3:1", *JUDGED], "LOW:HIGH"),
        (["--mode=sweep_guidance", "--guidance=2", *JUDGED], "--guidance: .* by --scales"),
    ],
)
def test_what_cannot_be_measured_is_refused(run, arguments, says, capsys):
    assert main.main([f"--workdir={run}", *arguments]) == 1
    assert re.search(says, capsys.readouterr().err)


def described(folder, location, overrides):
    """A run of which there is a description and no checkpoint."""
    config = configs.load(location, overrides)
    workdir.write_config(folder, config, catalogue.spec(config.dataset), [], 1)
    return folder


def test_what_a_run_has_not_is_refused(tmp_path, capsys):
    plain = dict(item.removeprefix("--config.").split("=", 1) for item in TINY[1:])
    plain = {**plain, "diffusion.class_conditional": "False"}
    folder = described(tmp_path / "plain", "configs/ddpm.py:tiny", plain)
    assert main.main([f"--workdir={folder}", "--mode=sweep_guidance", *JUDGED]) == 1
    assert "the run cannot be guided by its labels" in capsys.readouterr().err
    folder = described(tmp_path / "vae", "configs/vae.py:tiny", {})
    assert main.main([f"--workdir={folder}", "--mode=solvers", *JUDGED]) == 1
    assert "method 'vae' has no solvers to choose from" in capsys.readouterr().err
    assert main.main(["--mode=solvers", "--steps=3"]) == 1
    assert "--steps=3: --mode=solvers without a run" in capsys.readouterr().err
    assert main.main(["--mode=solvers", "--path=edm", "--samplers=pndm", "--calls=12"]) == 1
    assert "calls=12: solver pndm takes 13 in its fewest steps, 4" in capsys.readouterr().err
    assert main.main(["--mode=solvers", "--config.seed=3"]) == 1
    assert "there is no config without a run" in capsys.readouterr().err


def test_numbers_and_intervals_of_flags():
    assert numbers("--calls", "5,10,5", int, (), 1) == [5, 10]
    assert numbers("--calls", "", int, (7,), 1) == [7]
    with pytest.raises(ConfigError, match="at least 1"):
        numbers("--calls", "0", int, (), 1)
    assert intervals_of("0:inf,0.3:5") == [(0, np.inf), (0.3, 5)]
    with pytest.raises(ConfigError, match="LOW:HIGH"):
        intervals_of("0")
