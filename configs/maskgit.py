"""Text to image by tokens that are unmasked in parallel, as in MaskGIT and Muse.

Chang et al. 2022 and 2023. All tokens of the picture begin masked. A transformer that sees the
caption and every token predicts all at once, and the most certain ones are kept, in 12 steps.

Default: avatars at 16 x 16 as 8 x 8 tokens of configs/vqvae.py:avatars, with the tokens of their
captions before them, in a transformer of 4 blocks of width 128.
  command    launch/local.sh --config=configs/maskgit.py
             trains the VQ-VAE first, in stages/autoencoder under the workdir; to use an existing
             one: --config.stages.autoencoder=runs/vqvae_avatars
             launch/local.sh --workdir=runs/maskgit --mode=sample --guidance=2 \\
                 --text="a sad person with short blond hair, wearing a purple tank top and a cap"
  hardware   2 CPU cores
  time       46 minutes on one core of two (busy), after 10 for the VQ-VAE
  score      93.0 % of the attributes that captions name are right, 89.7 % in combinations that are
             not in the training data; docs/images/maskgit_prompts.png

Presets, as in --config=configs/maskgit.py:tiny:
  tiny       8 x 8 emoji by their names and keywords, very small models: a test of the installation
             in under a minute
  paper      MaskGIT's transformer of 24 blocks over 16 x 16 tokens of 256 x 256 pictures, for
             accelerators and your own captioned pictures, see configs/vqvae.py:paper16; not run by
             us
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.masked_diffusion import Options

VQVAE = base.read_module(Path(__file__).with_name("vqvae.py"))


def get_config() -> ConfigDict:
    """Avatars, for two CPU cores."""
    config = base.override(base.base(), VQVAE.AVATARS)
    config.method = "masked_diffusion"
    config.batch_size = 64
    config.duration = "8_epochs"
    config.precision = "auto"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.1
    config.schedule.name = "cosine"
    config.schedule.warmup = "3_percent"
    config.ema.decay = (0.995,)
    config.evals.batch_size = 256
    config.evals.limit = 1000
    config.dataset.codes = "autoencoder"
    with config.unlocked():
        config.stages.autoencoder = "vqvae.py:avatars"
        options = Options(
            conditions=("text",), schedule="cosine", decoding="confidence", steps=12, guidance=2.0
        )
        config.masked_diffusion = ConfigDict(options._asdict())
        network = {"width": 128, "depth": 4, "heads": 4, "positions": "learned", "dropout": 0.1}
        network |= {"attention_dropout": 0.0, "remat": "none"}
        config.model = ConfigDict({"network": "masked_transformer", "denoiser": network})
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
        "model.denoiser.width": 32,
        "model.denoiser.depth": 2,
        "model.denoiser.heads": 2,
    },
    # Chang et al. 2022, section 4.1: 24 blocks of 8 heads, width 768, 3,072 inside, 300 epochs of
    # ImageNet in batches of 256.
    "paper": VQVAE.PAPER16
    | {
        "precision": "bfloat16",
        "stages.autoencoder": "vqvae.py:paper16",
        "batch_size": 256,
        "duration": "1500000_steps",
        "optimizer.learning_rate": 1e-4,
        "optimizer.b2": 0.96,
        "optimizer.weight_decay": 0.045,
        "schedule.warmup": "5000_steps",
        "ema.decay": (0.9999,),
        "evals.every": "1_percent",
        "masked_diffusion.steps": 8,
        "model.denoiser.width": 768,
        "model.denoiser.depth": 24,
        "model.denoiser.heads": 8,
        "model.denoiser.dropout": 0.1,
        "model.denoiser.attention_dropout": 0.1,
        "model.denoiser.remat": "dots",
    },
}
