"""Least squares GAN (Mao et al. 2017).

Default: Fashion-MNIST, the networks of configs/dcgan.py.
  command    launch/local.sh --config=configs/lsgan.py
  hardware   2 CPU cores
  time       48 min 37 s on a very busy machine; about as much work as configs/dcgan.py
  score      fd_classifier 51.6, kid_classifier 5.95 +- 0.31, recall 0.84
             (test images: 0.65, 0, 0.96)
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

Presets, as in --config=configs/lsgan.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

DCGAN = base.read_module(Path(__file__).with_name("dcgan.py"))


def get_config() -> ConfigDict:
    """The networks of dcgan.py with the least-squares loss."""
    config = DCGAN.get_config()
    config.duration = "10_epochs"
    config.precision = "float32"
    config.gan.loss = "least_squares"
    return config


PRESETS = DCGAN.PRESETS
