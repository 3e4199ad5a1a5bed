"""Variational autoencoder (Kingma & Welling 2014): fully connected networks, Bernoulli pixels.

Default: Fashion-MNIST with dynamic binarisation.
  command    NPROC=1 launch/local.sh --config=configs/vae.py
  hardware   one CPU core of two
  time       4 minutes
  score      ELBO -236.5 nats (binary images), fd_classifier 34.0
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

Presets, as in --config=configs/vae.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.vae import Options


def get_config() -> ConfigDict:
    """Fashion-MNIST, for two CPU cores."""
    config = base.base()
    config.method = "vae"
    config.dataset.name = "fashion_mnist"
    config.dataset.validation = "5_percent"
    config.batch_size = 128
    config.steps_per_dispatch = 20
    config.duration = "60_epochs"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.clip_norm = 0.0
    config.schedule.name = "cosine"
    config.ema.decay = (0.999,)
    config.evals.batch_size = 256
    config.evals.judges = ("fidelity",)
    config.log.every = "200_steps"
    with config.unlocked():
        config.vae = ConfigDict(Options(latent_dim=20)._asdict())
        config.model = ConfigDict(
            {
                "network": "vae_mlp",
                "encoder": {"widths": (400, 400), "activation": "tanh"},
                "decoder": {"widths": (400, 400), "activation": "tanh"},
            }
        )
    return config


TINY = {
    "dataset.name": "digits",
    "dataset.validation": "10_percent",
    "dataset.test": "10_percent",
    "duration": "4000_steps",
    "evals.every": "50_percent",
    "evals.limit": 64,
    "evals.batch_size": 64,
    "evals.samples": 16,
    "evals.judges": (),
    "log.every": "200_steps",
}
PRESETS = {
    "tiny": TINY | {"model.encoder.widths": (64, 64), "model.decoder.widths": (64, 64)},
}
