"""R3GAN (Huang et al. 2024): relativistic pairing, R1 and R2, residual networks without norms.

Default: Fashion-MNIST, residual networks over 28, 14 and 7 pixels of 69,000 and 63,000 parameters,
684,000 examples.
  command    launch/local.sh --config=configs/r3gan.py
  hardware   2 CPU cores
  time       28 min 9 s, with other programs running
  score      fd_classifier 10.0, kid_classifier 0.47 +- 0.07, recall 0.70
             (test images: 0.65, 0, 0.96)

Presets, as in --config=configs/r3gan.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

DCGAN = base.read_module(Path(__file__).with_name("dcgan.py"))


def get_config() -> ConfigDict:
    """Residual networks; lazy penalties; Adam without first moment at a high learning rate."""
    config = DCGAN.get_config()
    config.duration = "12_epochs"
    config.gan.loss = "relativistic"
    config.gan.r1 = 1.0
    config.gan.r2 = 1.0
    config.gan.penalty_every = 4
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.99
    with config.unlocked():
        config.model = ConfigDict(
            {
                "network": "gan_residual",
                "generator": {"channels": (8, 32, 64), "blocks": 1, "expansion": 1.0},
                "discriminator": {
                    "channels": (8, 32, 64),
                    "blocks": 1,
                    "expansion": 1.0,
                    "spectral_norm": False,
                },
            }
        )
    return config


PRESETS = {
    "tiny": {key: value for key, value in DCGAN.PRESETS["tiny"].items() if "model" not in key}
    | {"model.generator.channels": (8, 16), "model.discriminator.channels": (8, 16)},
}
