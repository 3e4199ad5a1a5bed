"""A recurrent network, LSTM (Hochreiter & Schmidhuber 1997), on the characters of Moby-Dick.

Default: 2 layers of width 256.
  command    NPROC=1 launch/local.sh --config=configs/lstm.py
  hardware   one CPU core of two
  time       24 minutes
  score      validation loss 1.724 nats a character, 2.48 bits a byte

Presets, as in --config=configs/lstm.py:tiny:
  tiny       a very small model of Python's standard library, byte by byte: a test of the
             installation in about a minute
  jsb        piano rolls of Bach's chorales, as in Bai et al. 2018, table 1; published: 8.45 nats a
             frame
  nottingham piano rolls of folk tunes, likewise; published: 3.29
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

CHAR = base.read_module(Path(__file__).with_name("gpt_char.py"))
MUSIC = base.read_module(Path(__file__).with_name("tcn_music.py"))


def get_config() -> ConfigDict:
    """moby_dick, for two CPU cores."""
    config = CHAR.get_config()
    config.dataset.name = "moby_dick"
    config.duration = "4000_steps"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.0
    config.model.network = "recurrent"
    config.model.lm = ConfigDict({"cell": "lstm", "width": 256, "depth": 2, "dropout": 0.1})
    return config


JSB = {
    **MUSIC.ROLLS,
    "dataset.text.documents": "padded",  # so that each update covers few tunes
    "duration": "50_epochs",
    "optimizer.learning_rate": 5e-3,
    "model.lm.width": 200,
    "model.lm.depth": 1,
    "model.lm.dropout": 0.5,
}
PRESETS = {
    "tiny": CHAR.TINY | {"model.lm.width": 32},
    "jsb": JSB,
    "nottingham": JSB | MUSIC.NOTTINGHAM | {"dataset.text.documents": "packed"},
}
