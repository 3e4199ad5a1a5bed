"""beta-VAE (Higgins et al. 2017): a larger KL weight, for disentangled latent dimensions.

Default: Fashion-MNIST, beta = 4, the networks of configs/conv_vae.py, Bernoulli pixels.
  command    NPROC=1 launch/local.sh --config=configs/beta_vae.py
  hardware   one CPU core of two
  time       18 minutes
  score      ELBO -245.0 nats (binary images), fd_classifier 24.0
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

Presets, as in --config=configs/beta_vae.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

CONV = base.read_module(Path(__file__).with_name("conv_vae.py"))


def get_config() -> ConfigDict:
    """Ten latent dimensions, few enough to traverse one by one."""
    config = CONV.get_config()
    config.vae.likelihood = "bernoulli"
    config.vae.latent_dim = 10
    config.vae.beta = 4.0
    return config


PRESETS = {"tiny": CONV.PRESETS["tiny"]}
