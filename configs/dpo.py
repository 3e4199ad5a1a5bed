"""A small GPT that learns from pairs of a right and a wrong answer (DPO, Rafailov et al. 2023).

The policy of arithmetic.py:early is the reference. eval/accuracy is the share of held-out pairs in
which the right answer has become more probable, against the reference, than the wrong one.

Default: DPO on arithmetic and sorting; --config.preference.loss=ipo, kto or orpo for the others.
  command    launch/local.sh --config=configs/dpo.py
             trains the policy first, in stages/reference under the workdir; to use a trained one:
             --config.stages.reference=runs/arithmetic
  hardware   2 CPU cores
  time       5 minutes of CPU time, 14 of clock on one busy core, the policy included
  score      eval/accuracy 83.6 +- 1.2 %; before: 50

Presets, as in --config=configs/dpo.py:tiny:
  tiny       a very small model that only sorts: a test of the installation
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.preference import Options

GRPO = base.read_module(Path(__file__).with_name("grpo_arithmetic.py"))


def get_config() -> ConfigDict:
    """problems_preferences, for two CPU cores."""
    config = GRPO.get_config()
    config.method = "preference"
    config.dataset.name = "problems_preferences"
    config.duration = "500_steps"
    config.optimizer.learning_rate = 2e-4
    with config.unlocked():
        del config["rl_lm"]
        config.preference = ConfigDict(Options()._asdict())
    return config


PRESETS = {"tiny": GRPO.TINY | {"dataset.name": "sorting_preferences", "batch_size": 64}}
