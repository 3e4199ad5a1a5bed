"""`genjax.train` and `genjax.load` do what the command line does; the installed package too."""

import html
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import chex
import numpy as np
import pytest
from command_line import DDPM, FAST, ROOT

import genjax
from genjax import main
from genjax.config import ConfigError

LABELLED = [*FAST, "--config.diffusion.class_conditional=True"]
OVERRIDES = dict(flag.removeprefix("--config.").split("=", 1) for flag in LABELLED)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was trained from Python, and what `on_eval` was called with."""
    seen = []
    folder = tmp_path_factory.mktemp("library") / "run"
    return genjax.train("ddpm:tiny", folder, OVERRIDES, on_eval=seen.append), seen


def test_training_from_python_ends_where_the_command_line_does(trained, tmp_path):
    run, seen = trained
    arguments = [f"--config={DDPM}:tiny", f"--workdir={tmp_path / 'run'}", *LABELLED]
    assert main.main(arguments) == 0
    chex.assert_trees_all_equal(run.state.params, genjax.load(tmp_path / "run").state.params)
    assert [evaluated.step for evaluated in seen] == [6, 12]
    assert seen[-1].picture.ndim == 3
    assert "eval/bits_per_dim" in seen[-1].metrics


def test_samples_are_those_of_the_command_line(trained):
    run, _ = trained
    arguments = ["--mode=sample", "--num=3", "--seed=5", "--steps=3"]
    assert main.main([f"--workdir={run.workdir}", *arguments]) == 0
    (file,) = (run.workdir / "generated").glob("*seed_5*steps_3.npz")
    images = run.sample(3, seed=5, steps=3)
    np.testing.assert_array_equal(images, np.load(file)["samples"])
    assert (images.dtype, images.shape) == (np.uint8, (3, 8, 8, 1))
    assert run.picture(images).size[0] > 8


def test_metrics_are_those_of_the_command_line(trained, capsys):
    run, _ = trained
    arguments = [f"--workdir={run.workdir}", "--mode=eval", "--config.evals.limit=16"]
    assert main.main(arguments) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    metrics = run.evaluate(limit=16)
    assert printed["eval/bits_per_dim"] == format(metrics["eval/bits_per_dim"], ".6g")


def test_conditions_are_python_values(trained):
    run, _ = trained
    both = run.sample(label=[3, 7], steps=2)
    assert len(both) == 2
    np.testing.assert_array_equal(both, run.sample(2, label=np.array([3, 7]), steps=2))
    assert (both[1] != run.sample(2, label=3, steps=2)[1]).any()


def test_a_second_call_compiles_nothing(trained):
    run, _ = trained
    programs = run._sampler._programs
    run.sample(2, label=3, steps=2)
    count = len(programs)
    run.sample(2, label=4, steps=2)
    run.sample(2, label=[5, 6], steps=2, eta=0.5)
    assert len(programs) == count + 1  # eta draws noise: a program of its own
    run.sample(2, label=[5, 6], steps=2, eta=0.25)
    assert len(programs) == count + 1


def test_a_changed_config_is_trained_and_wrong_input_is_one_error(trained, tmp_path):
    run, _ = trained
    config = genjax.read_config("ddpm:tiny", OVERRIDES)
    config.optimizer.learning_rate = 1e-3
    config.duration = "3_steps"
    assert genjax.train(config, tmp_path / "other").step == 3
    with pytest.raises(ConfigError, match=r"no config 'dppm'. Nearest: ddpm"):
        genjax.read_config("dppm")
    with pytest.raises(ConfigError, match="holds no run"):
        genjax.load(tmp_path)
    with pytest.raises(ConfigError, match=r"no such condition or sampling option. Nearest: steps"):
        run.sample(stepz=3)
    with pytest.raises(ConfigError, match="expected"):
        run.sample(label=12)
    with pytest.raises(ConfigError, match="are images, not texts"):
        run.texts(np.zeros((1, 2), np.int32))
    with pytest.raises(ConfigError, match="batch_size"):
        genjax.train("ddpm:tiny", run.workdir, OVERRIDES | {"batch_size": 4})


def test_a_wheel_has_the_configs_and_runs_from_any_folder(tmp_path):
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    image = (ROOT / "launch/Dockerfile").read_text()  # which installs from what it copies
    for line in re.findall(r"^COPY (.*)$", image, re.MULTILINE):
        *names, target = line.split()
        for name in names:
            at = source / target / Path(name).name if target.endswith("/") else source / target
            at.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, at)
    assert (source / "launch/constraints.txt").is_file()
    subprocess.run([sys.executable, *build, "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("genjax_models-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        entry = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "genjax = genjax.main:main" in archive.read(entry).decode()
    command = "import sys; from genjax.main import main; sys.exit(main())"
    printed = subprocess.run(
        [sys.executable, "-c", command, "--config=ddpm:tiny", "--mode=config"],
        env={"PYTHONPATH": str(tmp_path / "installed"), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "installed/genjax/configs/ddpm.py" in printed


def test_an_autoencoder_has_codes_and_other_runs_say_that_they_have_none(trained, tmp_path):
    short = {"duration": "2_steps", "steps_per_dispatch": 1, "evals.limit": 8, "batch_size": 8}
    vae = genjax.train("vae:tiny", tmp_path / "vae", short)
    images = genjax.examples(vae.config, 5, split="validation")["image"]
    assert images.shape == (5, 8, 8, 1)
    codes = vae.encode(images)
    assert codes.shape == (5, vae.config.vae.latent_dim)
    assert vae.decode(codes).shape == images.shape
    with pytest.raises(ConfigError, match=r"has no codes. Expected a run of an autoencoder"):
        trained[0].encode(images)
    with pytest.raises(ConfigError, match="split='dev': expected one of train, validation, test"):
        genjax.examples(vae.config, 5, split="dev")


def test_a_notebook_shows_the_report(trained):
    run, _ = trained
    frame = run._repr_html_()
    assert frame.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert html.unescape(frame.split('"')[1]) == (run.workdir / "report.html").read_text()


def test_only_what_a_format_knows_is_exported_and_nothing_is_overwritten(trained, tmp_path):
    with pytest.raises(ConfigError, match="is for language models"):
        trained[0].export(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        trained[0].export(tmp_path)
