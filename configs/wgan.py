"""Wasserstein GAN with weight clipping (Arjovsky et al. 2017, algorithm 1).

Default: Fashion-MNIST, the networks of configs/dcgan.py. The learning rate is four times the
paper's, for a run of 3,000 generator updates.
  command    launch/local.sh --config=configs/wgan.py
  hardware   2 CPU cores
  time       22 min 1 s
  score      fd_classifier 113.5, kid_classifier 12.47 +- 0.40, recall 0.70
             (test images: 0.65, 0, 0.96): clothes with torn edges, still improving at the end
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

Presets, as in --config=configs/wgan.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

DCGAN = base.read_module(Path(__file__).with_name("dcgan.py"))


def get_config() -> ConfigDict:
    """The networks of dcgan.py; RMSProp, five steps of the clipped critic per generator step."""
    config = DCGAN.get_config()
    config.precision = "float32"
    config.duration = "16_epochs"
    config.gan.loss = "wasserstein"
    config.gan.critic_steps = 5
    config.optimizer.name = "rmsprop"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.b2 = 0.99
    return base.override(config, {"optimizer.networks.discriminator.weight_clip": 0.01})


PRESETS = DCGAN.PRESETS
