"""VQ-VAE (van den Oord et al. 2017): 7 x 7 tokens, a codebook of 512 learned by moving averages.

Default: Fashion-MNIST.
  command    launch/local.sh --config=configs/vqvae.py
  hardware   2 CPU cores
  time       6 min 25 s
  score      4.53 bits/dim, PSNR 22.3 dB, perplexity of the codes 418 of 512 (10,000 test images)

Presets, as in --config=configs/vqvae.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
  residual   four codebooks of 64, each for the residual of the previous ones
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.vqvae import Options


def get_config() -> ConfigDict:
    """Fashion-MNIST, for two CPU cores."""
    config = base.base()
    config.method = "vqvae"
    config.dataset.name = "fashion_mnist"
    config.dataset.validation = "5_percent"
    config.batch_size = 128
    config.duration = "15_epochs"
    config.precision = "auto"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.schedule.name = "cosine"
    config.ema.decay = ()
    config.evals.batch_size = 256
    config.evals.limit = 2048
    config.log.every = "50_steps"
    with config.unlocked():
        config.vqvae = ConfigDict(Options()._asdict())
        network = {"channels": 64, "halvings": 2, "blocks": 2}
        config.model = ConfigDict(
            {"network": "vq_conv", "encoder": dict(network), "decoder": dict(network)}
        )
    return config


PRESETS = {
    "tiny": {
        "precision": "float32",
        "dataset.name": "digits",
        "dataset.validation": "10_percent",
        "dataset.test": "10_percent",
        "duration": "300_steps",
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.batch_size": 64,
        "evals.samples": 16,
        "log.every": "20_steps",
        "vqvae.codes": 32,
        "vqvae.code_dim": 8,
        "model.encoder.channels": 16,
        "model.decoder.channels": 16,
        "model.encoder.halvings": 1,
        "model.decoder.halvings": 1,
        "model.encoder.blocks": 1,
        "model.decoder.blocks": 1,
    },
    "residual": {"vqvae.depth": 4, "vqvae.codes": 64},
}
