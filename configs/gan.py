"""The first GAN (Goodfellow et al. 2014): fully connected networks, the minimax game.

Default: Fashion-MNIST, a rectifier generator and a maxout discriminator with dropout.
  command    launch/local.sh --config=configs/gan.py
  hardware   2 CPU cores
  time       not measured yet
  score      not measured yet

Presets, as in --config=configs/gan.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

DCGAN = base.read_module(Path(__file__).with_name("dcgan.py"))


def get_config() -> ConfigDict:
    """Fully connected networks; the generator descends log(1 - D(G(z)))."""
    config = DCGAN.get_config()
    config.duration = "20_epochs"
    config.gan.loss = "minimax"
    with config.unlocked():
        config.model = ConfigDict(
            {
                "network": "gan_mlp",
                "generator": {"widths": (1200, 1200), "batch_norm": False},
                "discriminator": {
                    "widths": (240, 240),
                    "pieces": 5,
                    "dropout": 0.5,
                    "input_dropout": 0.2,
                },
            }
        )
    return config


PRESETS = {
    "tiny": {key: value for key, value in DCGAN.PRESETS["tiny"].items() if "model" not in key}
    | {"model.generator.widths": (64, 64), "model.discriminator.widths": (32, 32)},
}
