"""Stretches that are shares of the run stay where they were when a run is made longer."""

import json

import pytest

from genjax import config as configs
from genjax import main
from genjax.data.sources import image_fields
from genjax.method import DataSpec
from genjax.training import lengths, workdir
from genjax.training.metrics import read_metrics

SMALL = {
    "dataset.name": "digits",
    "dataset.threads": 1,
    "steps_per_dispatch": 1,
    "evals.every": "",
    "evals.samples": 0,
    "evals.limit": 64,
    "evals.judges": "",
    "log.every": "1_steps",
    "batch_size": 16,
    "schedule.warmup": "25_percent",
    "schedule.name": "constant",
    "optimizer.learning_rate": 0.001,
}
VAE = SMALL | {"vae.kl_warmup": "50_percent"}


def train(name, folder, values, **changes):
    flags = [f"--config.{key}={value}" for key, value in (values | changes).items()]
    given = [f"--config=configs/{name}.py:tiny", f"--workdir={folder}"]
    assert main.main([*given, *flags]) == 0
    return read_metrics(folder / "metrics.jsonl")


def test_a_longer_run_has_the_shares_of_the_length_that_it_began_with(tmp_path):
    """Half of 8 steps until the whole KL, a quarter of them until the whole learning rate."""
    train("vae", tmp_path, VAE, duration="8_steps")
    found = train("vae", tmp_path, VAE, duration="16_steps")
    steps = range(1, 17)
    kl = [found["train/kl_weight"][step] for step in steps]
    assert kl == pytest.approx([0, 0.25, 0.5, 0.75, *[1] * 12])
    rates = [found["train/learning_rate"][step] for step in steps]
    assert rates == pytest.approx([0.0005, *[0.001] * 15])
    assert json.loads((tmp_path / "config.json").read_text())["length"] == 8
    assert workdir.read_config(tmp_path).vae.kl_warmup == "50_percent"


def test_what_has_no_checkpoint_begins_now(tmp_path):
    spec = DataSpec("digits", image_fields((8, 8, 1), 0), "image", {"train": 160})
    given = {"vae.kl_warmup": "50_percent", "batch_size": 16, "duration": "2_epochs"}
    config = configs.load("configs/vae.py:tiny", given)
    assert lengths.settle(config, spec, tmp_path).vae.kl_warmup == "10_steps"
    workdir.write_config(tmp_path, config, spec, ["test"], 40)
    assert lengths.settle(config, spec, tmp_path).vae.kl_warmup == "10_steps"
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    assert lengths.settle(config, spec, tmp_path).vae.kl_warmup == "20_steps"
    assert lengths.began_with(tmp_path) == 40


def test_the_length_is_one_in_steps_that_take_several_batches(tmp_path):
    """A critic of 4 repeats eats an epoch of 10 batches in 3 steps."""
    spec = DataSpec("digits", image_fields((8, 8, 1), 10), "image", {"train": 160})
    given = {"gan.critic_steps": 4, "batch_size": 16, "duration": "2_epochs"}
    config = configs.load("configs/dcgan.py:tiny", given | {"schedule.warmup": "40_percent"})
    assert lengths.settle(config, spec, tmp_path).schedule.warmup == "2_steps"
