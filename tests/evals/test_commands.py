"""--mode=statistics and --mode=eval --samples, in this process and with a small extractor."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from genjax import main
from genjax.evals import features

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(64, 6)).astype(np.float32)


def apply(weights, images):
    out = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255 @ weights
    return out[:, :3], out[:, 3:]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path))
    made = features.Features("classifier", 3, WEIGHTS, apply, "0" * 64)
    monkeypatch.setattr(features, "build", lambda name, dataset, inception_path="": made)
    images = {
        f"x_{split}": RNG.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        for split, count in (("train", 90), ("test", 40))
    }
    labels = {f"y{name[1:]}": np.arange(len(x)) % 10 for name, x in images.items()}
    np.savez(tmp_path / "data.npz", **images, **labels)
    np.savez(tmp_path / "samples.npz", samples=images["x_test"][..., None])
    return tmp_path


def call(data, *arguments):
    fixed = ["--config=configs/dcgan.py:tiny", f"--workdir={data / 'none'}"]
    fixed += ["--config.dataset.name=npz", f"--config.dataset.path={data / 'data.npz'}"]
    fixed += ["--config.dataset.validation=", "--config.evals.split=test"]
    return main.main([*fixed, "--config.evals.judges=fidelity", *arguments])


def numbers(text):
    return dict(line.rsplit(" ", 1) for line in text.splitlines())


def test_images_are_judged_without_a_run(data, capsys):
    assert call(data, "--mode=eval", f"--samples={data / 'samples.npz'}") == 0
    of_file = numbers(capsys.readouterr().out)
    assert of_file["samples"] == "40"
    assert float(of_file["fd_classifier"]) > 0
    assert call(data, "--mode=eval", "--samples=test") == 0
    of_split = numbers(capsys.readouterr().out)
    for name in ("fd_classifier", "diversity_classifier", "coverage_classifier"):
        assert float(of_split[name]) == pytest.approx(float(of_file[name]), rel=1e-3), name
    assert not (data / "none").exists()


def test_statistics_are_made_and_used(data, capsys):
    assert call(data, "--mode=statistics") == 0
    said = capsys.readouterr().out
    assert said.startswith("classifier: statistics of 90 images in ")
    path = said.strip().rpartition(" ")[2]
    arguments = ("--mode=eval", "--samples=test")
    assert call(data, *arguments, f"--config.evals.fidelity.reference={path}") == 0
    assert "fd_classifier" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mode=eval", "--samples=tset"], "one of the splits train, test"),
        (["--mode=eval", "--samples=/nowhere.npz"], "/nowhere.npz: no such file"),
        (["--mode=train", "--samples=test"], "--samples belongs to --mode=eval"),
        (
            ["--mode=eval", "--output=x"],
            "--output belongs to --mode=export and --mode=tokenizer and --mode=solvers, not to",
        ),
        (
            ["--mode=eval", "--samples=test", "--config.evals.fidelity.features=()"],
            "features is empty",
        ),
        (
            ["--mode=eval", "--samples=test", "--config.evals.fidelity.reference=val"],
            "reference='val'",
        ),
        (["--mode=eval", "--samples=test", "--config.evals.judges="], "evals.judges is empty"),
        (
            ["--mode=eval", "--samples=test", "--config.evals.judges=fidelty"],
            "config.evals.judges='fidelty': no module 'fidelty'. Nearest: fidelity",
        ),
        (
            ["--mode=eval", "--samples=test", "--config.evals.fidelity.feature=inception"],
            "config.evals.fidelity.feature: no such key. Nearest: evals.fidelity.features",
        ),
        (["--mode=eval", "--samples=test", "--config.evals.diversity.generated=9"], "no such key"),
        (["--mode=statistics", "--config.evals.fidelity.features=()"], "features is empty"),
    ],
)
def test_wrong_commands_get_one_error(data, capsys, arguments, says):
    assert call(data, *arguments) == 1
    err = capsys.readouterr().err
    assert says in err
    assert err.count("error:") == 1


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.zeros((40, 8, 8, 1), np.float32), "the images to evaluate are float32[40, 8, 8, 1]"),
        (np.zeros((40, 9, 8, 1), np.uint8), "the images to evaluate are uint8[40, 9, 8, 1]"),
        (np.zeros((3, 8, 8, 1), np.uint8), "3 images to evaluate: expected at least 11"),
    ],
)
def test_samples_are_looked_at_before_a_classifier_is_trained(
    data, capsys, monkeypatch, rows, says
):
    monkeypatch.setattr(features, "build", lambda *_, **__: pytest.fail("that takes minutes"))
    np.savez(data / "wrong.npz", samples=rows)
    assert call(data, "--mode=eval", f"--samples={data / 'wrong.npz'}") == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("evals.fidelity.features=('classifier', 'incepton')", "Nearest: inception"),
        ("evals.fidelity.reference=valid", "expected a split of npz"),
        ("evals.fidelity.reference=gone.npz", "no reference statistics at gone.npz"),
        ("early_stop.metric=eval/fd_clasifier", "is not among the evaluations' metrics"),
    ],
)
def test_a_run_is_checked_before_a_classifier_is_trained(data, capsys, monkeypatch, flag, says):
    monkeypatch.setattr(features, "build", lambda *_, **__: pytest.fail("that takes minutes"))
    short = ("--config.duration=2_steps", "--config.evals.fidelity.generated=24")
    assert call(data, *short, f"--config.{flag}") == 1
    assert says in capsys.readouterr().err


def test_a_run_judges_its_samples_and_keeps_the_best(data, tmp_path):
    folder = tmp_path / "run"
    arguments = [
        *("--config.duration=4_steps", "--config.evals.every=2_steps", "--config.batch_size=16"),
        *("--config.evals.fidelity.generated=24", "--config.checkpoint.best=eval/fd_classifier"),
        *("--config.model.generator.channels=4", "--config.model.discriminator.channels=4"),
        f"--workdir={folder}",
    ]
    assert call(data, *arguments) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["eval/fd_classifier"] for line in lines if "eval/seconds" in line}
    assert sorted(found) == [2, 4]
    best = min(found, key=found.get)
    assert (folder / "checkpoints" / str(best)).is_dir()
    assert "fd_classifier" in (folder / "report.html").read_text()
    pictures = sorted((folder / "samples").iterdir())
    for split in ("test", "train"):  # that of the run itself, and another
        own = [f"--workdir={folder}", "--mode=eval", f"--config.evals.split={split}"]
        assert main.main(own) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    *_, again, other = (line for line in lines if line["step"] == 4)
    assert again["eval/fd_classifier"] == pytest.approx(found[4], rel=1e-4)
    assert "eval/train/fd_classifier" in other
    assert all(name.startswith("eval/train/") for name in other if "/" in name)
    assert "eval/train/fd_classifier" in (folder / "report.html").read_text()
    assert sorted((folder / "samples").iterdir()) == pictures
    wrong = "--config.checkpoint.best=eval/fd_clasifier"
    assert call(data, *arguments, wrong, "--config.duration=6_steps") == 1


CONFIG = """
from genjax import config as configs

own = configs.read_module({file!r})
PRESETS = own.PRESETS
get_config = own.get_config
"""
JUDGE = """
from typing import NamedTuple

from genjax.evals.judges import Judge


class Options(NamedTuple):
    level: int = 1


def build_judge(options, evals, dataset, mesh):
    def judge(samples, references, conditions):
        return {{"{name}": options.level * float(len(samples))}}

    return Judge(judge, ("{name}",), samples=12)
"""


@pytest.fixture
def beside(data, monkeypatch):
    """A folder with a config, and two judges of one's own: a file, and a module of a package."""
    folder = data / "experiment"
    (folder / "panel").mkdir(parents=True)
    (folder / "panel" / "__init__.py").write_text("")
    (folder / "panel" / "severe.py").write_text(JUDGE.format(name="severity"))
    (folder / "mild_judge.py").write_text(JUDGE.format(name="mildness"))
    file = str(Path(main.__file__).parents[1] / "configs" / "dcgan.py")
    (folder / "mine.py").write_text(CONFIG.format(file=file))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    forget()


def forget():
    for name in ("mild_judge", "panel", "panel.severe"):
        sys.modules.pop(name, None)


JUDGES = "--config.evals.judges=('fidelity', 'mild_judge', 'panel.severe')"


def test_several_judges_each_with_a_section_of_its_own(data, beside, capsys):
    arguments = [f"--config={beside / 'mine.py'}:tiny", JUDGES]
    levels = ["--config.evals.severe.level=3", "--config.evals.mild_judge.level=2"]
    assert call(data, *arguments, *levels, "--mode=eval", "--samples=test") == 0
    found = numbers(capsys.readouterr().out)
    assert float(found["fd_classifier"]) > 0
    assert (found["severity"], found["mildness"], found["samples"]) == ("36", "24", "40")
    assert call(data, *arguments, "--config.evals.severe.levle=3", "--mode=eval") == 1
    assert "Nearest: evals.severe.level" in capsys.readouterr().err


def test_a_run_keeps_the_judges_of_its_own_and_finds_them_again(data, beside, capsys, monkeypatch):
    folder, before = data / "run", list(sys.path)
    arguments = [
        *(f"--config={beside / 'mine.py'}:tiny", JUDGES, "--config.evals.severe.level=3"),
        *("--config.duration=2_steps", "--config.evals.every=", "--config.batch_size=16"),
        *("--config.evals.fidelity.generated=16", "--config.checkpoint.best=eval/severity"),
        *("--config.model.generator.channels=4", "--config.model.discriminator.channels=4"),
        f"--workdir={folder}",
    ]
    assert call(data, *arguments) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (evaluated,) = (line for line in lines if "eval/seconds" in line)
    assert (evaluated["eval/severity"], evaluated["eval/mildness"]) == (36, 12)
    assert "eval/fd_classifier" in evaluated
    stored = json.loads((folder / "config.json").read_text())["config"]["evals"]
    assert stored["severe"] == {"level": 3}
    assert stored["mild_judge"] == {"level": 1}
    forget()
    monkeypatch.setattr(sys, "path", before)  # as in a new process
    capsys.readouterr()
    assert main.main([f"--workdir={folder}", "--mode=eval"]) == 0
    assert numbers(capsys.readouterr().out)["eval/severity"] == "36"
