"""An autoregressive prior over the tokens of a VQ-VAE; the decoder turns them into images.

Default: a causal transformer on the tokens of configs/vqvae.py trained on Fashion-MNIST.
  command    launch/local.sh --config=configs/vqvae_prior.py
             trains the VQ-VAE first, in stages/autoencoder under the workdir; to use an existing
             one: --config.stages.autoencoder=runs/vqvae
  hardware   2 CPU cores
  time       30 minutes with other programs running, and 7 for the VQ-VAE
  score      fd_classifier 9.6, 110.2 nats for the tokens of an image, 4.17 bits/dim

Presets, as in --config=configs/vqvae_prior.py:tiny:
  tiny       tokens of configs/vqvae.py:tiny, a test of the installation in about a minute
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.token_prior import Options


def get_config() -> ConfigDict:
    """Fashion-MNIST, for two CPU cores."""
    config = base.base()
    config.method = "token_prior"
    config.dataset.name = "fashion_mnist"
    config.dataset.validation = "5_percent"
    config.batch_size = 64
    config.duration = "5_epochs"
    config.precision = "auto"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.schedule.name = "cosine"
    config.schedule.warmup = "3_percent"
    config.ema.decay = (0.995,)
    config.evals.batch_size = 256
    config.evals.limit = 2048
    config.evals.judges = ("fidelity",)
    config.log.every = "50_steps"
    config.dataset.codes = "autoencoder"
    with config.unlocked():
        config.stages.autoencoder = "vqvae.py"
        config.token_prior = ConfigDict(Options()._asdict())
        network = {"width": 192, "depth": 4, "heads": 4, "dropout": 0.0}
        config.model = ConfigDict({"network": "token_transformer", "prior": network})
    return config


PRESETS = {
    "tiny": {
        "precision": "float32",
        "stages.autoencoder": "vqvae.py:tiny",
        "dataset.name": "digits",
        "dataset.validation": "10_percent",
        "dataset.test": "10_percent",
        "duration": "300_steps",
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.batch_size": 64,
        "evals.samples": 16,
        "evals.judges": (),
        "log.every": "20_steps",
        "model.prior.width": 32,
        "model.prior.depth": 2,
    },
}
