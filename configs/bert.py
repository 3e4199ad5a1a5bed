"""BERT (Devlin et al. 2018): an encoder that fills gaps in English texts.

Default: 4 layers of width 192 on the Brown corpus and the State of the Union addresses; 4,096
WordPiece tokens, windows of 128, whole words masked. The judge `ngrams` gives what unigrams and
bigrams of the same training texts reach; `bigram_gap` has the task of `pseudo_loss`, a token given
all others.
  command    NPROC=1 launch/local.sh --config=configs/bert.py
  hardware   one CPU core of two
  time       38 minutes (busy)
  score      29.9 % of the hidden tokens, 4.21 nats (bigrams: 18.2 %, 4.74). Given all other tokens
             25.6 %, 4.25 nats: counts of both neighbours still are better, 35.4 %, 3.18

Presets, as in --config=configs/bert.py:tiny:
  tiny       a very small model of Python's standard library, byte by byte: a test of the
             installation in about a minute
  electra    ELECTRA (Clark et al. 2020): a generator of width 48 replaces words, the encoder
             finds them; not measured yet
  base       BERT base of the paper, 110 million parameters, on your own text
             (--config.dataset.path); for a machine with GPUs or TPUs; not run by us
  large      BERT large of the paper, 340 million parameters; likewise
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.masked_lm import Options


def get_config() -> ConfigDict:
    """brown_sotu, for two CPU cores."""
    config = base.base()
    config.method = "masked_lm"
    config.dataset.name = "brown_sotu"
    config.dataset.validation = "5_percent"
    config.dataset.text.tokenizer = "wordpiece"
    config.dataset.text.vocabulary_size = 4096
    config.dataset.text.length = 127  # and the token before the first: 128 positions
    config.batch_size = 32
    config.duration = "2000_steps"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.01
    config.schedule.name = "linear"
    config.schedule.warmup = "6_percent"
    config.ema.decay = ()
    config.evals.samples = 8
    config.evals.judges = ("ngrams",)
    config.evals.limit = 512
    config.log.every = "50_steps"
    with config.unlocked():
        config.masked_lm = ConfigDict(Options(pseudo_positions=4)._asdict())
        network = {
            "width": 192,
            "depth": 4,
            "heads": 3,
            "norm_first": True,  # trains faster and more surely than BERT's order
            "positions": "rotary",
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "init_std": 0.0,  # 0: set by the width
        }
        config.model = ConfigDict(
            {
                "network": "encoder",
                "length": 0,
                "vocabulary_size": 0,
                "encoder": network,
                # in which ELECTRA's generator differs from the encoder
                "generator": {"width": 48, "heads": 1},
            }
        )
    return config


# The paper's recipe: section 3.1 and appendix A.2.
PAPER = {
    "dataset.name": "text",
    "dataset.validation": "1_percent",
    "dataset.text.vocabulary_size": 30521,  # and the mask
    "dataset.text.length": 511,
    "batch_size": 256,
    "duration": "1000000_steps",
    "precision": "bfloat16",
    "optimizer.learning_rate": 1e-4,
    "optimizer.b2": 0.999,
    "schedule.warmup": "10000_steps",
    "evals.every": "10000_steps",
    "evals.limit": 2000,
    "checkpoint.every": "10000_steps",
    "masked_lm.whole_words": False,
    "model.encoder.norm_first": False,
    "model.encoder.positions": "learned",
    "model.encoder.dropout": 0.1,
    "model.encoder.attention_dropout": 0.1,
    "model.encoder.init_std": 0.02,
}
PRESETS = {
    "tiny": {
        "dataset.name": "python",
        "dataset.validation": "1_percent",
        "dataset.text.tokenizer": "bytes",
        "dataset.text.vocabulary_size": 0,
        "dataset.text.length": 32,
        "batch_size": 16,
        "duration": "300_steps",
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.batch_size": 64,
        "evals.samples": 2,
        "log.every": "20_steps",
        "masked_lm.pseudo_positions": 1,
        "model.encoder.width": 32,
        "model.encoder.depth": 2,
        "model.encoder.heads": 2,
    },
    "electra": {"masked_lm.objective": "replaced"},
    "base": PAPER
    | {"model.encoder.width": 768, "model.encoder.depth": 12, "model.encoder.heads": 12},
    "large": PAPER
    | {"model.encoder.width": 1024, "model.encoder.depth": 24, "model.encoder.heads": 16},
}
