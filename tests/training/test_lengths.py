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
GAME = SMALL | {
    "autoencoder_kl.adversarial_start": "50_percent",
    "model.encoder.channels": (8, 8),
    "model.decoder.channels": (8, 8),
    "model.discriminator.channels": 8,
}
VAE = SMALL | {"vae.kl_warmup": "50_percent"}


def train(name, folder, values, **changes):
    flags = [f"--config.{key}={value}" for key, value in (values | changes).items()]
    given = [f"--config=configs/{name}.py:tiny", f"--workdir={folder}"]
    assert main.main([*given, *flags]) == 0
    return read_metrics(folder / "metrics.jsonl")


def test_a_longer_run_plays_on_and_its_warm_up_is_over(tmp_path):
    """Half of 8 steps: the game begins with step 5, counted from 1, also in a run of 16."""
    train("autoencoder_kl", tmp_path, GAME, duration="8_steps")
    found = train("autoencoder_kl", tmp_path, GAME, duration="16_steps")
    assert sorted(found["train/discriminator/loss"]) == list(range(5, 17))
    rates = found["train/autoencoder/learning_rate"]
    assert [rates[step] for step in range(1, 5)] == pytest.approx([0.0005, *[0.001] * 3])
    assert {rates[step] for step in range(9, 17)} == {rates[8]}
    assert json.loads((tmp_path / "config.json").read_text())["length"] == 8
    stored = workdir.read_config(tmp_path)
    assert stored.autoencoder_kl.adversarial_start == "50_percent"


def test_a_longer_vae_has_its_whole_kl(tmp_path):
    train("vae", tmp_path, VAE, duration="8_steps")
    found = train("vae", tmp_path, VAE, duration="40_steps")["train/kl_weight"]
    expected = [0, 0.25, 0.5, 0.75, *[1] * 36]
    assert [found[step] for step in range(1, 41)] == pytest.approx(expected)


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
