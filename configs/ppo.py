"""A small GPT that learns arithmetic and sorting from rewards by PPO (Schulman et al. 2017).

The setting is that of grpo_arithmetic.py. Each problem is answered 4 times, a value network says
what reward to expect before each digit, and each step makes 2 passes over its answers.

Default: the reward is 1 for the right answer and 0 for any other.
  command    launch/local.sh --config=configs/ppo.py
             trains the policy first, in stages/reference under the workdir; to use a trained one:
             --config.stages.reference=runs/arithmetic
  hardware   2 CPU cores
  time       not measured yet
  score      not measured yet

Presets, as in --config=configs/ppo.py:tiny:
  tiny       a very small model that only sorts: a test of the installation
  rlhf       the reward is that of a reward model, which is trained first on pairs of answers
             (Ouyang et al. 2022); not measured yet
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.rl_lm import Options

GRPO = base.read_module(Path(__file__).with_name("grpo_arithmetic.py"))


def get_config() -> ConfigDict:
    """problems, for two CPU cores."""
    config = GRPO.get_config()
    # The value network begins as the policy too, all but its head.
    config.checkpoint.init_map += ((r"^params/value/(?!head/)(.*)$", r"params/lm/\1"),)
    options = Options(answers=4, max_new_tokens=7, advantage="gae", scale=True, average="token")
    config.rl_lm = ConfigDict(options._asdict())
    config.rl_lm.beta = 0.01
    config.rl_lm.passes = 2
    return config


PRESETS = {
    "tiny": GRPO.TINY,
    "rlhf": {"stages.reward": "reward_model.py", "rl_lm.reward": "", "rl_lm.beta": 0.1},
}
