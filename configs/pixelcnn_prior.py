"""A gated PixelCNN (van den Oord et al. 2016) over the tokens of a VQ-VAE.

Default: five epochs on the tokens of configs/vqvae.py trained on Fashion-MNIST.
  command    NPROC=1 launch/local.sh --config=configs/pixelcnn_prior.py
             trains the VQ-VAE first, in stages/autoencoder under the workdir; to use an existing
             one: --config.stages.autoencoder=runs/vqvae
  hardware   one CPU core of two
  time       24 minutes on a busy machine, and 8 for the VQ-VAE
  score      fd_classifier 27.9, 118.0 nats for the tokens of an image, 4.25 bits/dim
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

Presets, as in --config=configs/pixelcnn_prior.py:tiny:
  tiny       tokens of configs/vqvae.py:tiny, a test of the installation in about a minute
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

TRANSFORMER = base.read_module(Path(__file__).with_name("vqvae_prior.py"))


def get_config() -> ConfigDict:
    """Convolutions instead of attention."""
    config = TRANSFORMER.get_config()
    config.precision = "float32"
    config.duration = "5_epochs"
    with config.unlocked():
        network = {"width": 64, "depth": 8, "kernel_size": 3, "dropout": 0.1}
        config.model = ConfigDict({"network": "pixelcnn", "prior": network})
    return config


PRESETS = {"tiny": TRANSFORMER.PRESETS["tiny"] | {"model.prior.depth": 3}}
