"""Masked diffusion (Sahoo et al. 2024, MDLM) on the characters of Shakespeare's plays.

Default: 6 layers of width 128 that attend to all 129 characters, masked or not.
  command    NPROC=1 launch/local.sh --config=configs/mdlm.py
  hardware   one CPU core of two
  time       not measured yet
  score      not measured yet; 600 steps at length 64 and depth 4 took 70 s of CPU time to a
             bound of 2.573 nats a character; with learned positions 3.155, because attention to
             neighbours is then learned far more slowly

Presets, as in --config=configs/mdlm.py:tiny:
  tiny       a very small model of Python's standard library, byte by byte: a test of the
             installation in about a minute
  image      the tokens of configs/vqvae.py trained on Fashion-MNIST, unmasked in 16 steps, the most
             certain first (MaskGIT); not measured yet
  digits     the same on configs/vqvae.py:tiny, 8 x 8 digits with their labels;
             21.8 nats for the tokens of an image, 4.70 bits/dim, in a minute of CPU time
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.masked_diffusion import Options


def get_config() -> ConfigDict:
    """tiny_shakespeare, for two CPU cores."""
    config = base.base()
    config.method = "masked_diffusion"
    config.dataset.name = "tiny_shakespeare"
    config.dataset.validation = "10_percent"
    config.dataset.text.tokenizer = "characters"
    config.dataset.text.length = 128
    config.evals.judges = ("diversity",)
    config.batch_size = 32
    config.duration = "2000_steps"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.1
    config.schedule.name = "cosine"
    config.schedule.warmup = "100_steps"
    config.schedule.final = 0.1
    config.ema.decay = ()
    config.evals.samples = 16
    config.log.every = "50_steps"
    with config.unlocked():
        config.masked_diffusion = ConfigDict(Options()._asdict())
        network = {"width": 128, "depth": 6, "heads": 4, "positions": "rotary", "dropout": 0.0}
        config.model = ConfigDict({"network": "masked_transformer", "denoiser": network})
    return config


# Tokens of a VQ-VAE, decoded as in MaskGIT.
IMAGE = {
    "dataset.name": "fashion_mnist",
    "dataset.validation": "5_percent",
    "dataset.codes": "autoencoder",
    "stages.autoencoder": "vqvae.py",
    "batch_size": 64,
    "duration": "2_epochs",
    "optimizer.learning_rate": 1e-3,
    "schedule.warmup": "3_percent",
    "schedule.final": 0.0,
    "ema.decay": (0.995,),
    "evals.batch_size": 256,
    "evals.limit": 2048,
    "evals.judges": ("fidelity",),
    "masked_diffusion.schedule": "cosine",
    "masked_diffusion.decoding": "confidence",
    "masked_diffusion.steps": 16,
    "model.denoiser.width": 192,
    "model.denoiser.depth": 4,
    "model.denoiser.positions": "learned",  # places are of two dimensions
}
PRESETS = {
    "tiny": {
        "dataset.name": "python",
        "dataset.validation": "1_percent",
        "dataset.text.tokenizer": "bytes",
        "dataset.text.length": 32,
        "batch_size": 16,
        "duration": "300_steps",
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.batch_size": 64,
        "evals.samples": 2,
        "log.every": "20_steps",
        "masked_diffusion.steps": 32,
        "model.denoiser.width": 32,
        "model.denoiser.depth": 2,
        "model.denoiser.heads": 2,
    },
    "image": IMAGE,
    "digits": IMAGE
    | {
        "stages.autoencoder": "vqvae.py:tiny",
        "dataset.name": "digits",
        "dataset.validation": "10_percent",
        "dataset.test": "10_percent",
        "duration": "1000_steps",
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.batch_size": 64,
        "evals.samples": 100,
        "evals.judges": (),
        "log.every": "20_steps",
        "masked_diffusion.class_conditional": True,
        "model.denoiser.width": 64,
        "model.denoiser.depth": 2,
    },
}
