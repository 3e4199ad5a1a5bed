"""A GPT on byte-pair tokens (Radford et al. 2019).

Default: the State of the Union addresses, 10.8 million characters; 4,096 tokens.
  command    NPROC=1 launch/local.sh --config=configs/gpt.py
  hardware   one CPU core of two
  time       26 minutes
  score      validation loss 3.917 nats a token, 1.312 bits a byte

Presets, as in --config=configs/gpt.py:tiny:
  tiny       a very small model of Python's standard library, byte by byte: a test of the
             installation in about a minute
  gpt2       GPT-2's 124 million parameters and tokens, on your own text
             (--config.dataset.path), for a machine with GPUs or TPUs; not run by us
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

CHAR = base.read_module(Path(__file__).with_name("gpt_char.py"))


def get_config() -> ConfigDict:
    """sotu, for two CPU cores."""
    config = CHAR.get_config()
    config.dataset.name = "sotu"
    config.dataset.validation = "5_percent"
    config.dataset.text.tokenizer = "bpe"
    config.dataset.text.vocabulary_size = 4096
    config.model.lm.dropout = 0.0
    return config


PRESETS = {
    "tiny": CHAR.PRESETS["tiny"],
    "gpt2": {
        "dataset.name": "text",
        "dataset.validation": "1_percent",
        "dataset.text.tokenizer": "gpt2",
        "dataset.text.vocabulary_size": 0,
        "dataset.text.length": 1024,
        "batch_size": 480,
        "accumulation": 5,
        "duration": "600000_steps",
        "precision": "bfloat16",
        "optimizer.learning_rate": 6e-4,
        "optimizer.b2": 0.95,
        "schedule.warmup": "2000_steps",
        "evals.every": "5000_steps",
        "evals.limit": 2000,
        "evals.batch_size": 32,
        "checkpoint.every": "5000_steps",
        "model.lm.width": 768,
        "model.lm.depth": 12,
        "model.lm.heads": 12,
    },
}
