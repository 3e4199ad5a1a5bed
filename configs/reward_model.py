"""A reward model of answers to arithmetic and sorting, from pairs of a right and a wrong one.

Its run is a stage of ppo.py:rlhf.

Default: the network of arithmetic.py with one output.
  command    NPROC=1 launch/local.sh --config=configs/reward_model.py
  hardware   one CPU core of two
  time       not measured yet
  score      not measured yet; eval/accuracy is the share of held-out pairs whose right answer gets
             the higher reward

Presets, as in --config=configs/reward_model.py:tiny:
  tiny       a very small model that only sees sorting: a test of the installation
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.reward_model import Options

SUMS = base.read_module(Path(__file__).with_name("arithmetic.py"))


def get_config() -> ConfigDict:
    """problems_preferences, for two CPU cores."""
    config = SUMS.get_config()
    config.method = "reward_model"
    config.dataset.name = "problems_preferences"
    config.evals.samples = 0
    config.batch_size = 64
    with config.unlocked():
        del config["lm"]
        config.reward_model = ConfigDict(Options(centring=0.01)._asdict())
    return config


PRESETS = {
    "tiny": SUMS.PRESETS["tiny"] | {"dataset.name": "sorting_preferences", "evals.samples": 0},
}
