"""Conditional GAN (Mirza & Osindero 2014): both players are conditioned on the label.

Default: Fashion-MNIST, the networks of configs/dcgan.py.
  command    launch/local.sh --config=configs/cgan.py
  hardware   2 CPU cores
  time       21 min 48 s, with other programs running
  score      fd_classifier 7.4, kid_classifier 0.56 +- 0.10, recall 0.87
             (test images: 0.65, 0, 0.96)
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

Presets, as in --config=configs/cgan.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
  projection conditioning by a projection discriminator (Miyato & Koyama 2018)
  auxiliary  conditioning by an auxiliary classifier (AC-GAN, Odena et al. 2017)
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

DCGAN = base.read_module(Path(__file__).with_name("dcgan.py"))


def get_config() -> ConfigDict:
    """The networks of dcgan.py; the label is appended to the discriminator's input."""
    config = DCGAN.get_config()
    config.precision = "float32"
    config.duration = "7_epochs"
    config.gan.conditioning = "concatenation"
    return config


PRESETS = DCGAN.PRESETS | {
    "projection": {"gan.conditioning": "projection"},
    "auxiliary": {"gan.conditioning": "auxiliary"},
}
