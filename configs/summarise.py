"""Summaries: the one-line synopsis of a Debian package from its description.

Default: an encoder and a decoder of 3 layers of width 192 each; 58,479 packages' descriptions for
training, with no source package in two splits. The data are Debian's package index, which apt-get
fetches: see docs/seq2seq.md for other machines.
  command    NPROC=1 launch/local.sh --config=configs/summarise.py
             launch/local.sh --workdir=runs/summarise --mode=sample --source="This package has ..."
             launch/local.sh --workdir=runs/summarise --mode=eval
  hardware   one CPU core of two
  time       42 minutes (busy)
  score      ROUGE-L 13.6 on the test split; the description's first words have 24.0 (lead_rouge_l).
             3,000 steps are far too few: it writes common synopses and seldom looks at the
             description. finetune.py has 31.5 in less time

Presets, as in --config=configs/summarise.py:tiny:
  tiny       a very small model that makes the first line of a docstring from the rest, byte by
             byte, of Python's standard library: a test of the installation in about a minute
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.seq2seq import Options


def get_config() -> ConfigDict:
    """package_summaries, for two CPU cores."""
    config = base.base()
    config.method = "seq2seq"
    config.dataset.name = "package_summaries"
    config.dataset.validation = config.dataset.test = "2_percent"
    config.dataset.text.tokenizer = "bpe"
    config.dataset.text.vocabulary_size = 4096
    config.dataset.text.source_length = 128
    config.dataset.text.length = 32
    config.dataset.text.cut = True
    config.batch_size = 16
    config.duration = "3000_steps"
    config.precision = "auto"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.1
    config.schedule.name = "cosine"
    config.schedule.warmup = "5_percent"
    config.schedule.final = 0.0
    config.ema.decay = ()
    config.evals.samples = 16
    config.evals.every = "25_percent"
    config.evals.judges = ("overlap",)
    config.log.every = "50_steps"
    with config.unlocked():
        config.evals.overlap = ConfigDict({"baseline": "lead", "generated": 200})
        config.seq2seq = ConfigDict(Options()._asdict() | {"label_smoothing": 0.1})
        network = {"width": 192, "depth": 3, "heads": 6, "dropout": 0.1, "init_std": 0.0}
        sizes = {"length": 0, "source_length": 0, "vocabulary_size": 0}  # 0: those of the data
        config.model = ConfigDict({"network": "encoder_decoder", **sizes, "seq2seq": network})
    return config


# A very small model of docstrings, byte by byte, for all tiny presets of pairs.
TINY = {
    "dataset.name": "python_docstrings",
    "dataset.validation": "5_percent",
    "dataset.test": "",
    "dataset.text.tokenizer": "bytes",
    "dataset.text.vocabulary_size": 0,
    "dataset.text.source_length": 48,
    "dataset.text.length": 24,
    "batch_size": 16,
    "duration": "300_steps",
    "precision": "float32",
    "evals.every": "50_percent",
    "evals.limit": 64,
    "evals.batch_size": 64,
    "evals.samples": 2,
    "evals.overlap.generated": 8,
    "log.every": "20_steps",
    "model.seq2seq.width": 32,
    "model.seq2seq.depth": 2,
    "model.seq2seq.heads": 2,
}
PRESETS = {"tiny": TINY}
