"""Convolutional VAE with a discretised logistic likelihood of 8-bit images.

Default: Fashion-MNIST.
  command    NPROC=1 launch/local.sh --config=configs/conv_vae.py
  hardware   one CPU core of two
  time       17 minutes
  score      ELBO -1824 nats (3.36 bits/dim), fd_classifier 104.6
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

Presets, as in --config=configs/conv_vae.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
  celeba64   CelebA at 64 x 64, for one GPU or TPU; not run by us
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

VAE = base.read_module(Path(__file__).with_name("vae.py"))


def get_config() -> ConfigDict:
    """Convolutions; a scale for each pixel; a warm-up of the KL weight over two epochs."""
    config = VAE.get_config()
    config.steps_per_dispatch = 1
    config.duration = "20_epochs"
    config.optimizer.clip_norm = 1.0
    config.vae.likelihood = "logistic"
    config.vae.latent_dim = 64
    config.vae.kl_warmup = "2_epochs"
    with config.unlocked():
        config.model = ConfigDict(
            {
                "network": "vae_conv",
                "encoder": {"channels": 32, "hidden": 256},
                "decoder": {"channels": 32, "hidden": 256},
            }
        )
    return config


PRESETS = {
    "tiny": VAE.TINY | {"model.encoder.channels": 8, "model.decoder.channels": 8},
    "celeba64": {
        "dataset.name": "celeb_a",
        "dataset.image_size": 64,
        "duration": "50_epochs",
        "vae.latent_dim": 128,
        "model.encoder.channels": 64,
        "model.decoder.channels": 64,
        "evals.judges": (),
    },
}
