"""WGAN-GP on one-hot characters (Gulrajani et al. 2017, section 5.4).

Default: 32 characters from anywhere in the Brown corpus; residual convolutions of width 128, a
quarter of the paper's. The paper has the beginnings of news sentences.
  command    launch/local.sh --config=configs/wgan_gp_text.py
  hardware   2 CPU cores
  time       not measured yet
  score      not measured yet

Presets, as in --config=configs/wgan_gp_text.py:tiny:
  tiny       a very small model of Python's standard library, byte by byte: a test of the
             installation in about a minute
  paper      the paper's width, batch size and updates, on any text; for a machine with a GPU; not
             run by us
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.text_gan import Options


def get_config() -> ConfigDict:
    """The Brown corpus, for two CPU cores."""
    config = base.base()
    config.method = "text_gan"
    config.dataset.name = "brown"
    config.dataset.validation = "5_percent"
    config.dataset.text.tokenizer = "characters"
    config.dataset.text.length = 32
    config.evals.judges = ("diversity",)
    config.evals.limit = 2048
    config.batch_size = 64
    config.duration = "3000_steps"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.b1 = 0.5
    config.optimizer.b2 = 0.9
    config.optimizer.clip_norm = 0.0
    config.ema.decay = ()
    config.evals.samples = 32
    config.log.every = "50_steps"
    with config.unlocked():
        options = Options(kind="wgan_gp", loss="wasserstein", critic_steps=5, gradient_penalty=10.0)
        config.text_gan = ConfigDict(options._asdict())
        network = {"width": 128, "depth": 5, "kernel_size": 5}
        config.model = ConfigDict(
            {
                "network": "text_residual",
                "language": "",
                "generator": dict(network),
                "discriminator": dict(network),
            }
        )
    return config


PRESETS = {
    "tiny": {
        "dataset.name": "python",
        "dataset.validation": "1_percent",
        "dataset.text.tokenizer": "bytes",
        "dataset.text.length": 8,
        "batch_size": 16,
        "duration": "60_steps",
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.batch_size": 64,
        "evals.samples": 2,
        "log.every": "20_steps",
        "text_gan.critic_steps": 2,
        "text_gan.latent_dim": 16,
        "model.generator.width": 16,
        "model.generator.depth": 2,
        "model.discriminator.width": 16,
        "model.discriminator.depth": 2,
    },
    "paper": {
        "duration": "200000_steps",
        "optimizer.learning_rate": 1e-4,
        "evals.every": "1_percent",
        "text_gan.critic_steps": 10,
        "model.generator.width": 512,
        "model.discriminator.width": 512,
    },
}
