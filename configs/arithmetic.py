"""A small GPT that does sums: arithmetic and sorting, answered digit by digit.

It is the policy that grpo_arithmetic.py, ppo.py and dpo.py start from.

Default: 3 layers of width 128, on 23,092 problems of data/problems.py.
  command    NPROC=1 launch/local.sh --config=configs/arithmetic.py
  hardware   one CPU core of two
  time       12 min 37 s, other programs beside it
  score      82 of 100 held-out problems right (greedy 84), 95.0% of the digits

Presets, as in --config=configs/arithmetic.py:tiny:
  tiny       a very small model that only sorts: a test of the installation
  early      stopped after 600 steps, in 2 minutes: 43 of 100 problems are right (greedy 52), and
             a reward has something to teach
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

CHAR = base.read_module(Path(__file__).with_name("gpt_char.py"))


def get_config() -> ConfigDict:
    """problems, for two CPU cores."""
    config = CHAR.get_config()
    config.dataset.name = "problems"
    config.dataset.validation = "1000_examples"
    config.dataset.test = "1000_examples"
    config.dataset.text.length = 15
    config.dataset.text.documents = "padded"
    config.evals.judges = ()
    config.evals.limit = 1000
    config.batch_size = 128
    config.duration = "2500_steps"
    config.optimizer.learning_rate = 2e-3
    config.model.lm.depth = 3
    config.model.lm.dropout = 0.0
    with config.unlocked():
        config.model.lm.positions = "rotary"
    return config


TINY = {
    "dataset.name": "sorting",
    "evals.every": "50_percent",
    "evals.limit": 64,
    "evals.batch_size": 64,
    "evals.samples": 4,
    "log.every": "10_steps",
    "model.lm.width": 32,
    "model.lm.depth": 2,
    "model.lm.heads": 2,
}
PRESETS = {
    "tiny": TINY | {"batch_size": 64, "duration": "300_steps"},
    "early": {"duration": "600_steps"},
}
