"""Captions of pictures: an encoder of patches, and a decoder of words that attends to it.

Default: avatars at 16 x 16 in patches of 2 x 2, an encoder and a decoder of 3 layers of width 128
each. A picture has four captions, of which one is drawn each time it is seen.
  command    launch/local.sh --config=configs/captioning.py
             launch/local.sh --workdir=runs/captioning --mode=sample --image=picture.png --beams=4
             launch/local.sh --workdir=runs/captioning --mode=eval
  hardware   2 CPU cores
  time       22 minutes on one core of two (busy)
  score      on the test split CIDEr-D 5.52 and BLEU 99.98, against all four captions of a picture

Presets, as in --config=configs/captioning.py:tiny:
  tiny       8 x 8 emoji and their names, a very small model: a test of the installation in under a
             minute; it writes commas
  paper      the sizes of CPTR (Liu et al. 2021): ViT-B/16 at 384 x 384 and a decoder of 4 layers,
             without its pretrained weights, for accelerators and your own captioned pictures
             (--config.dataset.name=folder --config.dataset.path=DIR); not run by us
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.seq2seq import Options


def get_config() -> ConfigDict:
    """Avatars, for two CPU cores."""
    config = base.base()
    config.method = "seq2seq"
    config.dataset.name = "avatars"
    config.dataset.target = "text"
    config.dataset.validation = "5_percent"  # avatars have one
    config.dataset.text.tokenizer = "wordpiece"
    config.dataset.text.vocabulary_size = 512
    config.dataset.text.length = 40
    config.batch_size = 64
    config.duration = "5_epochs"
    config.precision = "auto"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.1
    config.schedule.name = "cosine"
    config.schedule.warmup = "5_percent"
    config.ema.decay = (0.995,)
    config.evals.samples = 16
    config.evals.limit = 1000
    config.evals.judges = ("captions",)
    with config.unlocked():
        config.evals.captions = ConfigDict({"generated": 500})
        config.seq2seq = ConfigDict(Options()._asdict())
        network = {"patch_size": 2, "width": 128, "depth": 3, "decoder_depth": 3, "heads": 4}
        network |= {"dropout": 0.1, "attention_dropout": 0.0, "init_std": 0.0, "remat": "none"}
        sizes = {"length": 0, "vocabulary_size": 0}  # 0: those of the data
        config.model = ConfigDict({"network": "image_to_text", **sizes, "seq2seq": network})
    return config


PRESETS = {
    "tiny": {
        "dataset.name": "emoji",
        "dataset.image_size": 8,
        "dataset.validation": "10_percent",
        "dataset.test": "10_percent",
        "dataset.text.length": 32,
        "precision": "float32",
        "duration": "150_steps",
        "ema.decay": (0.98,),
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.batch_size": 64,
        "evals.samples": 2,
        "evals.captions.generated": 8,
        "log.every": "25_steps",
        "model.seq2seq.width": 32,
        "model.seq2seq.depth": 2,
        "model.seq2seq.decoder_depth": 2,
        "model.seq2seq.heads": 2,
    },
    "paper": {
        "dataset.image_size": 384,
        "dataset.text.tokenizer": "bpe",
        "dataset.text.vocabulary_size": 16384,
        "dataset.text.length": 64,
        "precision": "bfloat16",
        "batch_size": 256,
        "duration": "20_epochs",
        "optimizer.learning_rate": 1e-4,
        "evals.every": "5_percent",
        "evals.captions.generated": 5000,
        "model.seq2seq.patch_size": 16,
        "model.seq2seq.width": 768,
        "model.seq2seq.depth": 12,
        "model.seq2seq.decoder_depth": 4,
        "model.seq2seq.heads": 12,
        "model.seq2seq.remat": "dots",
    },
}
