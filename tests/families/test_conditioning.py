"""A diffusion model that is told pictures and captions, through the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from genjax import main

WORDS = ("dark", "bright")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Dark and bright pictures with captions; what is told is the caption and a small picture."""
    place, workdir = tmp_path_factory.mktemp("told"), tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    for i in range(96):
        shade = (40, 215)[i % 2] + rng.integers(-20, 20, (8, 8))
        Image.fromarray(shade.astype(np.uint8)).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"{WORDS[i % 2]} square\n")
    arguments = {
        "dataset.name": "folder",
        "dataset.path": place,
        "dataset.validation": "20_percent",
        "dataset.test": "20_percent",
        "dataset.text.length": 16,
        "dataset.derived": (("small", "smaller", 4),),
        "diffusion.conditions": ("text", "small"),
        "diffusion.context_width": 16,
        "diffusion.guidance": 2.0,
        "diffusion.steps": 4,
        "duration": "60_steps",
        "evals.every": "",
        "evals.samples": 8,
        "model.denoiser.multipliers": (1,),
        "model.denoiser.attention": (),
    }
    flags = [f"--config.{name}={value}" for name, value in arguments.items()]
    config = "--config=configs/ddpm.py:tiny"
    assert main.main([config, *flags, f"--workdir={workdir}"]) == 0
    return workdir


def refused(capsys, *arguments):
    assert main.main([str(a) for a in arguments]) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_samples_are_drawn_for_a_caption_and_a_picture(run, tmp_path, capsys):
    said = next((run / "samples").glob("conditions_*.txt")).read_text()
    assert "dark square" in said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("eval/bits_per_dim" in row for row in rows)
    means = {}
    for word, shade in zip(WORDS, (40, 215), strict=True):
        Image.fromarray(np.full((2, 2), shade, np.uint8)).save(tmp_path / f"{word}.png")
        told = [f"--text={word} square", f"--small={tmp_path / word}.png", "--num=3"]
        assert main.main([f"--workdir={run}", "--mode=sample", *told]) == 0
        (file,) = (run / "generated").glob(f"*{word}*.npz")
        samples = np.load(file)["samples"]
        assert samples.shape == (3, 8, 8, 1)
        means[word] = samples.mean()
    assert means["bright"] > means["dark"] + 20
    capsys.readouterr()
    sample = [f"--workdir={run}", "--mode=sample"]
    edit = [*sample, "--text=dark square", f"--small={tmp_path}/dark.png", "--num=3"]
    edit += [f"--start={tmp_path}/bright.png"]
    from_picture = {}
    for name, options in {
        "strength": ["--strength=0.2"],
        "inversion": ["--inversion=10", "--start_text=bright square"],
    }.items():
        options += [f"--start_small={tmp_path}/bright.png"] if name == "inversion" else []
        assert main.main([*edit, *options]) == 0
        file = max((run / "generated").glob("*.npz"), key=lambda file: file.stat().st_mtime)
        from_picture[name] = np.load(file)["samples"].mean()
    assert from_picture["strength"] > means["dark"] + 10  # most of the bright picture is left
    assert from_picture["inversion"] < means["bright"]
    assert "--start_small missing" in refused(
        capsys, *edit, "--inversion=10", "--start_text=bright square"
    )
    assert main.main([*sample, "--conditions=test", "--num=5", "--guidance=1.0"]) == 0
    assert "--small is missing" in refused(capsys, *sample, "--text=dark square")
    assert "expected the file of a picture" in refused(
        capsys, *sample, "--text=dark square", "--small=nowhere.png"
    )
    assert "expected at most 16" in refused(
        capsys, *sample, "--text=a square that is very dark", f"--small={tmp_path}/dark.png"
    )
