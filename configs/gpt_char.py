"""A small GPT on the characters of Shakespeare's plays (Karpathy's tiny_shakespeare).

Default: 6 layers of width 128, 128 characters at a time.
  command    NPROC=1 launch/local.sh --config=configs/gpt_char.py
  hardware   one CPU core of two
  time       19 minutes
  score      validation loss 1.541 nats a character, 2.22 bits a byte

Presets, as in --config=configs/gpt_char.py:tiny:
  tiny       a very small model of Python's standard library, byte by byte: a test of the
             installation in about a minute
  nanogpt    nanoGPT's setting for a CPU: 4 layers of width 128, 64 characters at a time, 2,000
             steps of 12; a validation loss of 1.768 in 2 minutes of one core (1.753 and 1.767
             with two other seeds); in PyTorch 1.773 and 1.760; published: 1.88, with GPT-2's
             initial weights, which are too small for this width
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.lm import Options


def get_config() -> ConfigDict:
    """tiny_shakespeare, for two CPU cores."""
    config = base.base()
    config.method = "lm"
    config.dataset.name = "tiny_shakespeare"
    config.dataset.validation = "10_percent"
    config.dataset.text.tokenizer = "characters"
    config.dataset.text.length = 128
    config.evals.judges = ("diversity",)
    config.batch_size = 32
    config.duration = "2000_steps"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.1
    config.schedule.name = "cosine"
    config.schedule.warmup = "100_steps"
    config.schedule.final = 0.1
    config.ema.decay = ()
    config.evals.samples = 16
    config.log.every = "50_steps"
    with config.unlocked():
        config.lm = ConfigDict(Options()._asdict())
        network = {"width": 128, "depth": 6, "heads": 4, "bias": True, "dropout": 0.1}
        network["init_std"] = 0.0  # 0: set by the width
        sizes = {"length": 0, "vocabulary_size": 0}  # 0: those of the data
        config.model = ConfigDict({"network": "decoder", **sizes, "lm": network})
    return config


# A very small model of Python's standard library, byte by byte, for all tiny presets of text.
TINY = {
    "dataset.name": "python",
    "dataset.validation": "1_percent",
    "dataset.text.tokenizer": "bytes",
    "dataset.text.length": 32,
    "batch_size": 16,
    "duration": "300_steps",
    "evals.every": "50_percent",
    "evals.limit": 64,
    "evals.batch_size": 64,
    "evals.samples": 2,
    "log.every": "20_steps",
}
PRESETS = {
    "tiny": TINY | {"model.lm.width": 32, "model.lm.depth": 2, "model.lm.heads": 2},
    "nanogpt": {
        "dataset.text.length": 64,
        "batch_size": 12,
        "duration": "2000_steps",
        "model.lm.width": 128,
        "model.lm.depth": 4,
        "model.lm.heads": 4,
        "model.lm.bias": False,
        "model.lm.dropout": 0.0,
        "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay_rules": ((r"(kernel|embedding|positions)$", 1.0), (r".*", 0.0)),
    },
}
