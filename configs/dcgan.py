"""DCGAN (Radford et al. 2016): convolutional networks with batch norm, non-saturating loss.

Default: Fashion-MNIST, 0.9M parameters, 855,000 examples.
  command    launch/local.sh --config=configs/dcgan.py
  hardware   2 CPU cores
  time       26 min 8 s, with other programs running
  score      fd_classifier 35.9, kid_classifier 3.62 +- 0.17, recall 0.88
             (test images: 0.65, 0, 0.96)

Presets, as in --config=configs/dcgan.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.gan import Options


def get_config() -> ConfigDict:
    """Fashion-MNIST, for two CPU cores."""
    config = base.base()
    config.method = "gan"
    config.dataset.name = "fashion_mnist"
    config.dataset.validation = "5_percent"
    config.batch_size = 64
    config.duration = "15_epochs"
    config.precision = "auto"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.b1 = 0.5
    config.optimizer.clip_norm = 0.0
    config.ema.decay = (0.999,)
    config.ema.networks = ("generator",)
    config.evals.batch_size = 256
    config.evals.limit = 2048
    config.evals.judges = ("fidelity",)
    config.log.every = "100_steps"
    with config.unlocked():
        config.gan = ConfigDict(Options()._asdict())
        config.model = ConfigDict(
            {
                "network": "dcgan",
                "generator": {"channels": 64, "kernel_size": 4, "norm": "batch"},
                "discriminator": {
                    "channels": 64,
                    "kernel_size": 4,
                    "norm": "batch",
                    "spectral_norm": False,
                },
            }
        )
    return config


PRESETS = {
    "tiny": {
        "precision": "float32",
        "dataset.name": "digits",
        "dataset.validation": "10_percent",
        "dataset.test": "10_percent",
        "duration": "300_steps",
        "optimizer.learning_rate": 1e-3,
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.batch_size": 64,
        "evals.samples": 16,
        "evals.judges": (),
        "log.every": "20_steps",
        "model.generator.channels": 16,
        "model.discriminator.channels": 16,
    },
}
