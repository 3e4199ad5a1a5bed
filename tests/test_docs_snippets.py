"""What the documents show as code runs as it stands."""

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
