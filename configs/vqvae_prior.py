"""An autoregressive prior over the tokens of a VQ-VAE: with its decoder, a generator of images.

Default: a causal transformer on the tokens of configs/vqvae.py trained on Fashion-MNIST.
  command    NPROC=1 launch/local.sh --config=configs/vqvae.py --workdir=runs/vqvae
             NPROC=1 launch/local.sh --config=configs/vqvae_prior.py --config.first_stage=runs/vqvae
  hardware   one CPU core of two
  time       15 minutes
  score      fd_classifier 15.3, 110.6 nats for the tokens of an image, 4.24 bits/dim

The data have to be those of the first stage: for another data set give --config.dataset.name too.

Presets, as in --config=configs/vqvae_prior.py:tiny:
  tiny       on a first stage of configs/vqvae.py:tiny: a test of the installation in about a minute
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.token_prior import Options


def get_config() -> ConfigDict:
    """Fashion-MNIST, for two CPU cores."""
    config = base.base()
    config.method = "token_prior"
    config.dataset.name = "fashion_mnist"
    config.batch_size = 64
    config.duration = "2_epochs"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.schedule.name = "cosine"
    config.schedule.warmup = "3_percent"
    config.ema.decay = (0.995,)
    config.evals.batch_size = 256
    config.evals.limit = 2048
    config.evals.features = ("classifier",)
    config.log.every = "50_steps"
    with config.unlocked():
        config.first_stage = ""  # workdir of the VQ-VAE
        config.token_prior = ConfigDict(Options()._asdict())
        network = {"width": 192, "depth": 4, "heads": 4, "dropout": 0.0}
        config.model = ConfigDict({"network": "token_transformer", "prior": network})
    return config


PRESETS = {
    "tiny": {
        "dataset.name": "digits",
        "dataset.test": "10_percent",
        "duration": "300_steps",
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.batch_size": 64,
        "evals.samples": 16,
        "evals.features": (),
        "log.every": "20_steps",
        "model.prior.width": 32,
        "model.prior.depth": 2,
    },
}
