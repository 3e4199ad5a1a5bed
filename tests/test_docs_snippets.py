"""What the documents show as code runs as it stands."""

import json
import re
from pathlib import Path

import numpy as np

from genjax import main

ROOT = Path(__file__).parent.parent


def blocks(document):
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.S)


def test_the_family_of_the_documents_trains_and_samples(tmp_path):
    (code,) = blocks("docs/extending.md")
    (tmp_path / "mean.py").write_text(code)
    run = tmp_path / "run"
    assert main.main([f"--config={tmp_path / 'mean.py'}", f"--workdir={run}"]) == 0
    asked = ["--mode=sample", "--label=3", "--label=7", "--gain=0.5", "--num=4"]
    assert main.main([f"--workdir={run}", *asked]) == 0
    (file,) = (run / "generated").glob("*.npz")
    samples = np.load(file)["samples"]
    assert samples.shape == (4, 8, 8, 1)
    np.testing.assert_array_equal(samples[:2], samples[2:])
    assert (samples[0] != samples[1]).any()


def test_the_family_of_the_readme_trains_and_samples(tmp_path):
    (code,) = blocks("README.md")
    (tmp_path / "mlp_flow.py").write_text(code)
    run = tmp_path / "run"
    config = f"--config={tmp_path / 'mlp_flow.py'}"
    assert main.main([config, f"--workdir={run}", "--config.duration=300_steps"]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    errors = [line["eval/velocity_mse"] for line in lines if "eval/velocity_mse" in line]
    # Predicting zero everywhere has an error of 1.72.
    assert errors[-1] < 0.9
    assert main.main([f"--workdir={run}", "--mode=sample", "--num=4", "--steps=5"]) == 0
    (file,) = (run / "generated").glob("*.npz")
    assert np.load(file)["samples"].shape == (4, 8, 8, 1)
