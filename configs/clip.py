"""CLIP (Radford et al. 2021): images and captions as vectors of one space.

Default: emoji at 32 x 32 with their names and keywords, a ViT of 4 blocks over 8 x 8 patches and a
text transformer of 3 blocks, both of width 128. Recalls are among 100 held-out pairs.
  command    launch/local.sh --config=configs/clip.py
  hardware   2 CPU cores
  time       33 minutes on one core of two (busy)
  score      of 100 held-out emoji the right one is found for 20 % of captions, and the right
             caption for 24 % of emoji (chance 1 %)

Presets, as in --config=configs/clip.py:tiny:
  tiny       16 x 16 emoji, a very small model: a test of the installation in under a minute
  cnn        a convolutional image tower; not measured yet
  siglip     the sigmoid loss (Zhai et al. 2023); not measured yet
  avatars    16 x 16 faces with captions, for configs/dalle2_prior.py; R@1 100 % of 100 pairs, 32
             minutes on one core (busy)
  avatars_tiny  the same with the model of tiny, for dalle2_prior.py:tiny
  vit_b32    the paper's ViT-B/32 and its recipe, for accelerators and your own captioned pictures
             (--config.dataset.name=folder --config.dataset.path=DIR); not run by us
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.clip import Options


def get_config() -> ConfigDict:
    """Emoji, for two CPU cores."""
    config = base.base()
    config.method = "clip"
    config.dataset.name = "emoji"
    config.dataset.image_size = (32,)
    config.dataset.crop_padding = 3
    config.dataset.validation = "200_examples"
    config.dataset.test = "200_examples"
    config.dataset.text.tokenizer = "wordpiece"
    config.dataset.text.vocabulary_size = 2048
    config.dataset.text.length = 48
    config.batch_size = 128
    config.duration = "2000_steps"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2
    config.schedule.name = "cosine"
    config.schedule.warmup = "5_percent"
    config.ema.decay = (0.995,)
    config.evals.batch_size = 100  # the candidates of recalls
    config.evals.samples = 0
    config.checkpoint.best = (
        "eval/image_to_text_r1"  # the loss rises before recalls are at their best
    )
    config.checkpoint.mode = "max"
    with config.unlocked():
        config.clip = ConfigDict(Options(features=128)._asdict())
        config.model = ConfigDict(
            {
                "network": "vit",
                "vit": {
                    "patch_size": 8,
                    "width": 128,
                    "depth": 4,
                    "heads": 4,
                    "pool": "mean",
                    "dropout": 0.1,
                    "attention_dropout": 0.0,
                    "remat": "none",
                },
                "cnn": {
                    "patch_size": 1,
                    "channels": (32, 64, 128, 256),
                    "features": 256,
                    "dropout": 0.25,
                },
                "text": {
                    "width": 128,
                    "depth": 3,
                    "heads": 4,
                    "causal": False,
                    "pool": "mean",
                    "dropout": 0.1,
                    "attention_dropout": 0.0,
                    "remat": "none",
                },
            }
        )
    return config


_TINY = {
    "model.vit.patch_size": 4,
    "dataset.image_size": 16,
    "dataset.crop_padding": 1,
    "dataset.text.vocabulary_size": 512,
    "dataset.text.length": 32,
    "batch_size": 64,
    "duration": "150_steps",
    "optimizer.learning_rate": 2e-3,
    "ema.decay": (0.98,),
    "evals.every": "50_percent",
    "log.every": "25_steps",
    "clip.features": 32,
    "model.vit.width": 32,
    "model.vit.depth": 2,
    "model.vit.heads": 2,
    "model.text.width": 32,
    "model.text.depth": 2,
    "model.text.heads": 2,
}
# The data and the tokenizer of text2image.py and of the configs of DALL-E 2.
_AVATARS = {
    "dataset.name": "avatars",
    "dataset.image_size": 16,
    "dataset.crop_padding": 0,
    "dataset.validation": "",
    "dataset.test": "",
    "dataset.text.vocabulary_size": 512,
    "dataset.text.length": 48,
    "model.vit.patch_size": 4,
    "checkpoint.best": "eval/loss",
    "checkpoint.mode": "min",
    "evals.limit": 1000,
}

PRESETS = {
    "tiny": _TINY,
    "avatars": _AVATARS,
    "avatars_tiny": _TINY | _AVATARS | {"duration": "60_steps", "evals.limit": 100},
    "cnn": {"model.network": "cnn"},
    "siglip": {"clip.loss": "siglip"},
    # Radford et al. 2021, tables 18 and 20: 32 epochs of 400 million pairs. The paper crops at
    # random, and its tokenizer is one of its own.
    "vit_b32": {
        "dataset.image_size": 224,
        "dataset.crop_padding": 0,
        "dataset.text.tokenizer": "bpe",
        "dataset.text.vocabulary_size": 49152,
        "dataset.text.length": 77,
        "precision": "bfloat16",
        "batch_size": 32768,
        "duration": "12800000000_examples",
        "optimizer.learning_rate": 5e-4,
        "schedule.warmup": "2000_steps",
        "ema.decay": (),
        "evals.batch_size": 1024,
        "evals.every": "1_percent",
        "clip.features": 512,
        "model.vit.patch_size": 32,
        "model.vit.width": 768,
        "model.vit.depth": 12,
        "model.vit.heads": 12,
        "model.vit.pool": "token",
        "model.vit.dropout": 0.0,
        "model.vit.remat": "dots",
        "model.text.width": 512,
        "model.text.depth": 12,
        "model.text.heads": 8,
        "model.text.causal": True,
        "model.text.pool": "end",
        "model.text.dropout": 0.0,
        "model.text.remat": "dots",
    },
}
