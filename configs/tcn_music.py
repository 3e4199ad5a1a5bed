"""A temporal convolutional network on piano rolls (Bai et al. 2018, table 1).

Default: Bach's chorales (JSB), 2 levels of width 150; published: 8.10 nats a frame.
  command    launch/local.sh --config=configs/tcn_music.py
  hardware   2 CPU cores
  time       3 minutes
  score      8.27 nats a frame on the test split

Presets, as in --config=configs/tcn_music.py:tiny:
  tiny       a very small network on the same data, a test of the installation in about a minute
  nottingham folk tunes, 4 levels of width 150; published: 3.07
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.lm import Options


def get_config() -> ConfigDict:
    """jsb_chorales, for two CPU cores."""
    config = base.base()
    config.method = "lm"
    config.schedule.name = "cosine"
    config.ema.decay = ()
    config.log.every = "50_steps"
    with config.unlocked():
        config.lm = ConfigDict(Options()._asdict())
        network = {"width": 150, "depth": 2, "kernel_size": 3, "dropout": 0.5}
        sizes = {"length": 0, "vocabulary_size": 0}  # 0: those of the data
        config.model = ConfigDict({"network": "tcn", **sizes, "lm": network})
    return base.override(config, ROLLS)


# Settings for piano rolls, for this config and those made for text.
ROLLS = {
    "dataset.name": "jsb_chorales",
    "dataset.validation": "",
    "dataset.text.length": 160,  # the longest tune
    "dataset.text.documents": "packed",  # several tunes in a row
    "batch_size": 4,
    "evals.batch_size": 8,
    "evals.every": "5_epochs",
    "duration": "150_epochs",
    "optimizer.name": "adam",
    "optimizer.learning_rate": 1e-3,
    "optimizer.clip_norm": 0.4,
    "checkpoint.best": "eval/loss",
    "evals.samples": 8,
    "evals.judges": (),
}
NOTTINGHAM = {
    "dataset.name": "nottingham",
    "dataset.text.length": 1792,  # the longest has 1,793 frames, most have a few hundred
    "batch_size": 4,
    "duration": "60_epochs",
}
PRESETS = {
    "tiny": {
        "duration": "100_steps",
        "evals.every": "50_percent",
        "evals.limit": 16,
        "evals.samples": 2,
        "log.every": "10_steps",
        "model.lm.width": 16,
    },
    "nottingham": {
        **NOTTINGHAM,
        "model.lm.depth": 4,
        "model.lm.kernel_size": 6,
        "model.lm.dropout": 0.2,
    },
}
