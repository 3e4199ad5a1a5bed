"""Two processes encode, judge, draw pictures and sample as one does."""

import socket

import numpy as np
from command_line import ROOT, timeless_metrics
from PIL import Image

import genjax
from genjax.data.packages import cache_root

PRIOR = {
    "duration": "12_steps",
    "optimizer.name": "sgd",
    "evals.every": "12_steps",
    "evals.limit": "16",
    "evals.judges": "fidelity",
    "evals.fidelity.generated": "16",
    "evals.fidelity.reference": "validation",
}
STAGE = f"""
from genjax import config as configs

SMALL = {{"duration": "20_steps", "evals.every": "", "evals.limit": 16}}
SMALL |= {{"model.encoder.channels": 8, "model.decoder.channels": 8}}


def get_config():
    return configs.load("{ROOT}/configs/vqvae.py:tiny", SMALL)
"""
# What is in no metric: how long something took.


def cache(folder):
    """A cache that has the data set and its classifier, but no codes or statistics."""
    folder.mkdir()
    for name in ("tfds", "classifiers", "onednn"):
        (cache_root() / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(cache_root() / name)
    return folder


def codes(folder, split, name):
    (path,) = folder.glob(f"codes/digits-{split}-*")
    return np.load(path / f"{name}.npy")


def flags(stage):
    keys = PRIOR | {"stages.autoencoder": str(stage)}
    chosen = [f"--config.{name}={value}" for name, value in keys.items()]
    return [f"--config={ROOT}/configs/vqvae_prior.py:tiny", *chosen]


def on_two(cli, data, *arguments):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [
        cli.start(
            *arguments,
            environment={
                "GENJAX_COORDINATOR": f"127.0.0.1:{port}",
                "GENJAX_PROCESS_COUNT": "2",
                "GENJAX_PROCESS_INDEX": str(index),
                "GENJAX_DATA": str(data),
            },
        )
        for index in range(2)
    ]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err


def test_codes_pictures_judges_and_samples_of_two_processes_are_those_of_one(cli, tmp_path):
    first_cache, data = cache(tmp_path / "first_cache"), cache(tmp_path / "cache")
    first_run, run = tmp_path / "first", tmp_path / "run"
    (tmp_path / "stage.py").write_text(STAGE)
    known = {"GENJAX_DATA": str(first_cache)}
    cli.run(*flags(tmp_path / "stage.py"), f"--workdir={first_run}", environment=known)
    on_two(cli, data, *flags(first_run / "stages/autoencoder"), f"--workdir={run}")
    for split in ("train", "validation", "test"):
        first, second = (codes(folder, split, "code") for folder in (first_cache, data))
        np.testing.assert_array_equal(second, first)
        first, second = (codes(folder, split, "log_likelihood") for folder in (first_cache, data))
        np.testing.assert_allclose(second, first, rtol=1e-5)
    for first, second in zip(timeless_metrics(first_run), timeless_metrics(run), strict=True):
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_allclose(second[name], first[name], rtol=1e-4, err_msg=name)
    assert "eval/fd_classifier" in first
    pictures = [Image.open(at / "samples/step_00000012.png") for at in (first_run, run)]
    np.testing.assert_array_equal(*map(np.asarray, pictures))
    on_two(cli, data, f"--workdir={run}", "--mode=sample", "--num=5", "--seed=3")
    (file,) = (run / "generated").glob("*seed_3.npz")
    expected = genjax.load(first_run).sample(5, seed=3)
    np.testing.assert_array_equal(np.load(file)["samples"], expected)
