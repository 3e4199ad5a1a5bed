"""Wasserstein GAN with gradient penalty (Gulrajani et al. 2017).

Default: Fashion-MNIST, the networks of configs/dcgan.py, the critic with layer norm, 540,000
examples. The learning rate is five times the paper's, for a run of 1,688 generator updates.
  command    launch/local.sh --config=configs/wgan_gp.py
  hardware   2 CPU cores
  time       23 min 43 s, with other programs running
  score      fd_classifier 47.8, kid_classifier 5.82 +- 0.30, recall 0.85
             (test images: 0.65, 0, 0.96)
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

Presets, as in --config=configs/wgan_gp.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

DCGAN = base.read_module(Path(__file__).with_name("dcgan.py"))


def get_config() -> ConfigDict:
    """The networks of dcgan.py; five steps of the penalised critic per generator step."""
    config = DCGAN.get_config()
    config.precision = "float32"
    config.duration = "9_epochs"
    config.gan.loss = "wasserstein"
    config.gan.gradient_penalty = 10.0
    config.gan.critic_steps = 5
    config.optimizer.learning_rate = 5e-4
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.9
    config.model.discriminator.norm = "layer"
    return config


PRESETS = DCGAN.PRESETS
