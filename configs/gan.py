"""The first GAN (Goodfellow et al. 2014): fully connected networks, the minimax game.

Default: Fashion-MNIST, a rectifier generator and a maxout discriminator with dropout, 1,200,000
examples. The samples have the right shapes, and noise that the classifier's features do not see.
  command    launch/local.sh --config=configs/gan.py
  hardware   2 CPU cores
  time       16 min 17 s, with other programs running
  score      fd_classifier 8.5, kid_classifier 0.87 +- 0.17, recall 0.70
             (test images: 0.65, 0, 0.96)
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

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
    config.precision = "float32"
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
