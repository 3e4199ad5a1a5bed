"""What the documents show as code runs as it stands."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from genjax import main

ROOT = Path(__file__).parent.parent


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.S)


def test_the_family_of_the_documents_trains_and_samples(tmp_path, monkeypatch):
    (code,), (shell,) = (blocks("docs/extending.md", name) for name in ("python", "shell"))
    train, sample = (shlex.split(line)[1:] for line in shell.splitlines())
    monkeypatch.chdir(tmp_path)
    Path("mlp_flow.py").write_text(code)
    assert main.main([train[0] + ":tiny", *train[1:]]) == 0
    run = Path("runs/mlp_flow")
    errors = [
        line["eval/mse"]
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "eval/mse" in line
    ]
    assert errors[-1] < 0.95 * errors[0]  # six standard errors
    assert main.main([*sample, "--num=4"]) == 0
    (file,) = (run / "generated").glob("*label_3_label_7*.npz")
    samples = np.load(file)["samples"]
    assert samples.shape == (4, 8, 8, 1)
    assert samples.dtype == np.uint8


def test_the_family_of_the_readme_trains_and_samples(tmp_path):
    (code,) = (block for block in blocks("README.md", "python") if "def build(" in block)
    (tmp_path / "small_flow.py").write_text(code)
    run = tmp_path / "run"
    config = f"--config={tmp_path / 'small_flow.py'}"
    assert main.main([config, f"--workdir={run}", "--config.duration=300_steps"]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    errors = [line["eval/velocity_mse"] for line in lines if "eval/velocity_mse" in line]
    # Predicting zero everywhere has an error of 1.72.
    assert errors[-1] < 0.9
    assert main.main([f"--workdir={run}", "--mode=sample", "--num=4", "--steps=5"]) == 0
    (file,) = (run / "generated").glob("*.npz")
    assert np.load(file)["samples"].shape == (4, 8, 8, 1)


def test_the_python_of_the_readme_trains_samples_and_evaluates(tmp_path):
    (code,) = (block for block in blocks("README.md", "python") if "import genjax\n" in block)
    one_device = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
    done = subprocess.run(
        [sys.executable, "-c", code.replace("20_epochs", "25_steps")],
        env=os.environ | {"XLA_FLAGS": one_device, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "threes.png").mode == "RGB"
    printed = done.stdout.splitlines()
    assert printed[-1].startswith("dict_keys")
    assert "'eval/bits_per_dim': " in printed[-2]
