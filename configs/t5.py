"""An encoder and a decoder trained on plain text: span corruption (T5) or text infilling (BART).

Default: the State of the Union addresses, 4,096 tokens; 15 % of the tokens of each row of 128 are
taken out in spans of 3, and the decoder says what they were (Raffel et al. 2020).
  command    NPROC=1 launch/local.sh --config=configs/t5.py
             launch/local.sh --workdir=runs/t5 --mode=sample --source="Our [MASK] is strong."
  hardware   one CPU core of two
  time       not measured yet
  score      not measured yet

Presets, as in --config=configs/t5.py:tiny:
  tiny       a very small model of Python's standard library, byte by byte: a test of the
             installation in about a minute
  bart       text infilling: 30 % of the tokens are taken out, with one mask for each span, and the
             decoder writes the whole row (Lewis et al. 2020); not measured yet
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

CHAR = base.read_module(Path(__file__).with_name("gpt_char.py"))
SUMMARISE = base.read_module(Path(__file__).with_name("summarise.py"))


def get_config() -> ConfigDict:
    """sotu, for two CPU cores."""
    config = SUMMARISE.get_config()
    config.dataset.name = "sotu"
    config.dataset.validation, config.dataset.test = "5_percent", ""
    config.dataset.text.source_length = 0
    config.dataset.text.length = 128
    config.dataset.text.cut = False
    config.evals.judges = ()
    config.seq2seq.corruption = "spans"
    config.seq2seq.label_smoothing = 0.0
    with config.unlocked():
        config.model.seq2seq.update(
            norm_first=True,
            norm="rms",
            activation="geglu",
            positions="relative",
            embed_norm=False,
            bias=False,
        )
    return config


WIDTH = {
    f"model.seq2seq.{name}": size for name, size in (("width", 32), ("depth", 2), ("heads", 2))
}
PRESETS = {
    "tiny": CHAR.TINY | WIDTH | {"precision": "float32"},
    "bart": {
        "seq2seq.corruption": "infilling",
        "seq2seq.density": 0.3,
        "model.seq2seq.norm_first": False,
        "model.seq2seq.norm": "layer",
        "model.seq2seq.activation": "gelu",
        "model.seq2seq.positions": "learned",
        "model.seq2seq.embed_norm": True,
        "model.seq2seq.bias": True,
    },
}
