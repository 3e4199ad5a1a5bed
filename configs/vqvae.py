"""VQ-VAE (van den Oord et al. 2017): 7 x 7 tokens, a codebook of 512 learned by moving averages.

Default: Fashion-MNIST.
  command    launch/local.sh --config=configs/vqvae.py
  hardware   2 CPU cores
  time       6 min 25 s
  score      4.53 bits/dim, PSNR 22.3 dB, perplexity of the codes 418 of 512 (10,000 test images)

Presets, as in --config=configs/vqvae.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
  residual   four codebooks of 64, each for the residual of the previous ones
  avatars    8 x 8 tokens of 16 x 16 pictures by finite scalar quantisation, the first stage of
             configs/dalle1.py and maskgit.py; PSNR 25.0 dB in 10 minutes on one core (busy)
  emoji      4 x 4 tokens of 8 x 8 emoji, a very small model: that of their tiny presets
  paper      32 x 32 tokens of 256 x 256 pictures, as many as DALL-E's, for accelerators and your
             own captioned pictures (--config.dataset.name=folder --config.dataset.path=DIR); not
             run by us
  paper16    the same with 16 x 16 tokens of 1,024 codes, as many as MaskGIT's; not run by us
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


TINY = {
    "precision": "float32",
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
}
# Data with captions. A prior on the tokens must have the same.
AVATARS = {
    "dataset.name": "avatars",
    "dataset.text.tokenizer": "wordpiece",
    "dataset.text.vocabulary_size": 512,
    "dataset.text.length": 40,
}
EMOJI = {
    "dataset.name": "emoji",
    "dataset.image_size": 8,
    "dataset.validation": "10_percent",
    "dataset.test": "10_percent",
    "dataset.text.tokenizer": "wordpiece",
    "dataset.text.vocabulary_size": 512,
    "dataset.text.length": 32,
}
PAPER = AVATARS | {
    "dataset.image_size": 256,
    "dataset.text.tokenizer": "bpe",
    "dataset.text.vocabulary_size": 16384,
    "dataset.text.length": 256,
}
PAPER16 = PAPER | {"dataset.text.vocabulary_size": 32768, "dataset.text.length": 64}
LARGE = {
    "precision": "bfloat16",
    "batch_size": 256,
    "duration": "400000_steps",
    "optimizer.learning_rate": 1e-4,
    "vqvae.code_dim": 256,
    "model.encoder.channels": 512,
    "model.decoder.channels": 512,
}
PRESETS = {
    "tiny": TINY | {"dataset.name": "digits"},
    "residual": {"vqvae.depth": 4, "vqvae.codes": 64},
    "avatars": AVATARS
    | {
        "duration": "20_epochs",
        "precision": "float32",
        "vqvae.quantizer": "fsq",
        "model.encoder.halvings": 1,
        "model.decoder.halvings": 1,
    },
    "emoji": TINY | EMOJI,
    # Ramesh et al. 2021, section 2.1: 8,192 codes, and images 8 times smaller along each side. Its
    # first stage is a discrete VAE by the Gumbel softmax; this one takes the nearest code.
    "paper": LARGE
    | PAPER
    | {"vqvae.codes": 8192, "model.encoder.halvings": 3, "model.decoder.halvings": 3},
    # Chang et al. 2022, section 4.1: 1,024 codes, 16 times smaller. Its first stage is a VQGAN.
    "paper16": LARGE
    | PAPER16
    | {"vqvae.codes": 1024, "model.encoder.halvings": 4, "model.decoder.halvings": 4},
}
