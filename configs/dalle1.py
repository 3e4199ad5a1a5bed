"""Text to image, token by token, as in DALL-E (Ramesh et al. 2021): the caption, then the picture.

Default: avatars at 16 x 16 as 8 x 8 tokens of configs/vqvae.py:avatars, after the tokens of their
captions, in a causal transformer of 4 blocks of width 128.
  command    launch/local.sh --config=configs/dalle1.py
             trains the VQ-VAE first, in stages/autoencoder under the workdir; to use an existing
             one: --config.stages.autoencoder=runs/vqvae_avatars
             launch/local.sh --workdir=runs/dalle1 --mode=sample --guidance=2 \\
                 --text="a happy person with green pigtails, wearing a yellow shirt and sunglasses"
  hardware   2 CPU cores
  time       10 minutes for the tokens and 46 for the transformer, on one core of two (busy)
  score      86.9 % of the attributes that captions name are right, 82.8 % in combinations that are
             not in the training data; docs/images/dalle1_prompts.png

Presets, as in --config=configs/dalle1.py:tiny:
  tiny       8 x 8 emoji by their names and keywords, very small models: a test of the installation
             in under a minute
  paper      the transformer of 12 billion parameters over 256 tokens of text and 1,024 of the
             image, for accelerators and your own captioned pictures, see configs/vqvae.py:paper;
             not run by us
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.token_prior import Options

VQVAE = base.read_module(Path(__file__).with_name("vqvae.py"))


def get_config() -> ConfigDict:
    """Avatars, for two CPU cores."""
    config = base.override(base.base(), VQVAE.AVATARS)
    config.method = "token_prior"
    config.batch_size = 64
    config.duration = "8_epochs"
    config.precision = "auto"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.schedule.name = "cosine"
    config.schedule.warmup = "3_percent"
    config.ema.decay = (0.995,)
    config.evals.batch_size = 256
    config.evals.limit = 1000
    config.dataset.codes = "autoencoder"
    with config.unlocked():
        config.stages.autoencoder = "vqvae.py:avatars"
        options = Options(conditions=("text",), label_dropout=0.1)
        config.token_prior = ConfigDict(options._asdict())
        network = {"width": 128, "depth": 4, "heads": 4, "dropout": 0.1}
        network |= {"attention_dropout": 0.0, "remat": "none"}
        config.model = ConfigDict({"network": "token_transformer", "prior": network})
    return config


PRESETS = {
    "tiny": VQVAE.EMOJI
    | {
        "precision": "float32",
        "stages.autoencoder": "vqvae.py:emoji",
        "duration": "150_steps",
        "ema.decay": (0.98,),
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.batch_size": 64,
        "evals.samples": 16,
        "log.every": "25_steps",
        "model.prior.width": 32,
        "model.prior.depth": 2,
        "model.prior.heads": 2,
    },
    # Ramesh et al. 2021, section 2.2 and appendix B: 64 blocks of 62 heads of 64, 430,000 updates.
    # Most of its blocks attend to a row or a column of the image; these attend to all before.
    "paper": VQVAE.PAPER
    | {
        "precision": "bfloat16",
        "stages.autoencoder": "vqvae.py:paper",
        "batch_size": 1024,
        "duration": "430000_steps",
        "optimizer.learning_rate": 4.5e-4,
        "optimizer.b2": 0.96,
        "optimizer.weight_decay": 0.045,
        "optimizer.clip_norm": 4.0,
        "schedule.warmup": "5000_steps",
        "ema.decay": (0.999,),
        "evals.every": "1_percent",
        "model.prior.width": 3968,
        "model.prior.depth": 64,
        "model.prior.heads": 62,
        "model.prior.dropout": 0.1,
        "model.prior.attention_dropout": 0.1,
        "model.prior.remat": "full",
    },
}
