"""KL-regularised autoencoder (Rombach et al. 2022): the first stage of latent diffusion.

Default: Fashion-MNIST, 7 x 7 latents of 4 channels; the KL weight is one, so the loss is the
negative ELBO and the latents have about the prior's variance.
  command    NPROC=1 launch/local.sh --config=configs/autoencoder_kl.py
  hardware   one CPU core of two
  time       22 minutes
  score      ELBO -1941 nats (3.57 bits/dim), PSNR 24.4 dB
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

Presets, as in --config=configs/autoencoder_kl.py:tiny:
  tiny       8 x 8 digits with a discriminator, a test of the installation in about a minute
  f8         the networks of the paper's KL-f8 with perceptual and adversarial terms, on CelebA
             resized to 256 x 256, for one GPU or TPU; not run by us. The likelihood's scale b is
             learned here, so relative to the paper's absolute error the KL has weight 1e-6 b
  imagenet256  the same on ImageNet; not run by us
  captions256  the same with 16 channels of latents (Esser et al. 2024), on pictures with captions,
             for text2image.py:sd3-medium; not run by us. Emoji stand in for your own:
             --config.dataset.name=folder --config.dataset.path=DIR
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.autoencoder_kl import Options


def get_config() -> ConfigDict:
    """Fashion-MNIST, for two CPU cores."""
    config = base.base()
    config.method = "autoencoder_kl"
    config.dataset.name = "fashion_mnist"
    config.dataset.validation = "5_percent"
    config.batch_size = 32
    config.duration = "2_epochs"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.learning_rate_rules = ((r"log_scale$", 5.0), (r".*", 1.0))
    config.schedule.name = "cosine"
    config.schedule.warmup = "100_steps"
    config.ema.decay = (0.999,)
    config.ema.networks = ("autoencoder",)
    config.evals.batch_size = 256
    config.evals.limit = 2048
    config.evals.judges = ("fidelity",)
    config.log.every = "100_steps"
    with config.unlocked():
        config.autoencoder_kl = ConfigDict(Options()._asdict())
        network = {"channels": (16, 32, 64), "blocks": 1}
        config.model = ConfigDict(
            {
                "network": "autoencoder_kl",
                "encoder": dict(network),
                "decoder": dict(network),
                "discriminator": {"channels": 32, "layers": 2, "norm": "batch"},
            }
        )
    return config


_F8 = {
    "dataset.name": "celeb_a",
    "dataset.image_size": 256,
    "batch_size": 32,
    "duration": "400000_steps",
    "precision": "bfloat16",
    "optimizer.learning_rate": 1.44e-4,
    "optimizer.b1": 0.5,
    "optimizer.b2": 0.9,
    "schedule.name": "constant",
    "schedule.warmup": "1000_steps",
    "evals.every": "20000_steps",
    "evals.batch_size": 32,
    "evals.judges": (),
    "checkpoint.every": "10000_steps",
    "autoencoder_kl.kl_weight": 1e-6,
    "autoencoder_kl.perceptual_weight": 1.0,
    "autoencoder_kl.adversarial_weight": 0.5,
    "autoencoder_kl.adversarial_start": "50000_steps",
    "model.encoder.channels": (128, 256, 512, 512),
    "model.decoder.channels": (128, 256, 512, 512),
    "model.encoder.blocks": 2,
    "model.decoder.blocks": 2,
    "model.discriminator.channels": 64,
    "model.discriminator.layers": 3,
}
PRESETS = {
    "tiny": {
        "dataset.name": "digits",
        "dataset.validation": "10_percent",
        "dataset.test": "10_percent",
        "duration": "300_steps",
        "optimizer.b1": 0.5,
        "optimizer.b2": 0.9,
        "schedule.warmup": "20_steps",
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.batch_size": 64,
        "evals.samples": 16,
        "evals.judges": (),
        "log.every": "20_steps",
        "autoencoder_kl.adversarial_weight": 0.5,
        "autoencoder_kl.adversarial_start": "20_percent",
        "model.encoder.channels": (16, 32),
        "model.decoder.channels": (16, 32),
        "model.discriminator.channels": 16,
        "model.discriminator.layers": 1,
    },
    "f8": _F8,
    "imagenet256": _F8 | {"dataset.name": "imagenet2012"},
    "captions256": _F8
    | {
        "dataset.name": "emoji",
        "dataset.validation": "10_percent",
        "dataset.text.tokenizer": "wordpiece",
        "dataset.text.vocabulary_size": 32000,
        "dataset.text.length": 77,
        "autoencoder_kl.latent_channels": 16,
    },
}
