"""Least squares GAN (Mao et al. 2017).

Default: Fashion-MNIST, the networks of configs/dcgan.py.
  command    launch/local.sh --config=configs/lsgan.py
  hardware   2 CPU cores
  time       not measured yet
  score      not measured yet

Presets, as in --config=configs/lsgan.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

DCGAN = base.read_module(Path(__file__).with_name("dcgan.py"))


def get_config() -> ConfigDict:
    """The networks of dcgan.py under the least-squares loss."""
    config = DCGAN.get_config()
    config.gan.loss = "least_squares"
    return config


PRESETS = DCGAN.PRESETS
