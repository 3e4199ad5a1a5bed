"""--mode=statistics and --mode=eval --samples, in this process and with a small extractor."""

from __future__ import annotations

import json

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
    return main.main([*fixed, "--config.evals.features=classifier", *arguments])


def numbers(text):
    return dict(line.rsplit(" ", 1) for line in text.splitlines())


def test_images_are_judged_without_a_run(data, capsys):
    assert call(data, "--mode=eval", f"--samples={data / 'samples.npz'}") == 0
    of_file = numbers(capsys.readouterr().out)
    assert of_file["images"] == "40"
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
    assert call(data, *arguments, f"--config.evals.reference={path}") == 0
    assert "fd_classifier" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mode=eval", "--samples=tset"], "one of the splits train, test"),
        (["--mode=eval", "--samples=/nowhere.npz"], "/nowhere.npz cannot be read"),
        (["--mode=train", "--samples=test"], "--samples belongs to --mode=eval"),
        (
            ["--mode=eval", "--output=x"],
            "--output belongs to --mode=export and --mode=tokenizer, not to --mode=eval",
        ),
        (["--mode=eval", "--samples=test", "--config.evals.features=()"], "features is empty"),
        (["--mode=eval", "--samples=test", "--config.evals.reference=val"], "reference='val'"),
        (["--mode=statistics", "--config.evals.features=()"], "features is empty"),
    ],
)
def test_wrong_commands_get_one_error(data, capsys, arguments, says):
    assert call(data, *arguments) == 1
    err = capsys.readouterr().err
    assert says in err
    assert err.count("error:") == 1


def test_a_run_judges_its_samples_and_keeps_the_best(data, tmp_path):
    folder = tmp_path / "run"
    arguments = [
        *("--config.duration=4_steps", "--config.evals.every=2_steps", "--config.batch_size=16"),
        *("--config.evals.generated=24", "--config.checkpoint.best=eval/fd_classifier"),
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
    wrong = "--config.checkpoint.best=eval/fd_clasifier"
    assert call(data, *arguments, wrong, "--config.duration=6_steps") == 1
