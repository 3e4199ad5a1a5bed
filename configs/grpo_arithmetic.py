"""A small GPT that learns arithmetic and sorting from rewards (GRPO, Shao et al. 2024).

The policy of arithmetic.py:early answers each problem of a batch 8 times. An answer is worth 1 if
it is right to the last digit, and 0 if not. eval/reward is the share of held-out problems that are
answered right by a draw at temperature 1, eval/greedy_reward that of the most probable digits;
the report shows both before the first step and after.

Default: GRPO with the mean over all tokens, and the penalty as part of the reward.
  command    launch/local.sh --config=configs/grpo_arithmetic.py
             trains the policy first, in stages/reference under the workdir; to use a trained one:
             --config.stages.reference=runs/arithmetic
  hardware   2 CPU cores
  time       2 min for the policy and 12 min, on one core with other programs beside it
  score      right answers to 1,000 held-out problems: 43.2% to 48.6%, greedy 51.9% to 56.2%, still
             rising; standard errors are 1.6%

Presets, as in --config=configs/grpo_arithmetic.py:tiny:
  tiny       a very small model that only sorts, a test of the installation, evaluated on 64
             problems. With --config.evals.limit=1000: right answers at temperature 1 from 41.4% to
             51.5% of 1,000 held-out problems, greedy 80.8% to 85.4%
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.rl_lm import Options

SUMS = base.read_module(Path(__file__).with_name("arithmetic.py"))


def get_config() -> ConfigDict:
    """problems, for two CPU cores."""
    config = SUMS.get_config()
    config.method = "rl_lm"
    config.checkpoint.init_from = "reference"  # the policy begins as the reference
    config.checkpoint.init_map = ((r"^(params|mutable)/(lm/.*)$", r"\1/\2"),)
    config.batch_size = 64
    config.duration = "600_steps"
    config.optimizer.learning_rate = 5e-5  # at 2e-4: 45.1% after 100 steps, and not 46.5%
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "constant"
    config.schedule.warmup = "10_steps"
    config.evals.start = True
    config.log.every = "10_steps"
    with config.unlocked():
        del config["lm"]
        config.stages.reference = "arithmetic.py:early"
        options = Options(answers=8, max_new_tokens=7, advantage="grpo", scale=True, beta=0.01)
        config.rl_lm = ConfigDict(options._asdict())
        config.rl_lm.average = "token"
    return config


TINY = SUMS.TINY | {
    "stages.reference": "arithmetic.py:tiny",
    "optimizer.learning_rate": 2e-4,
    "duration": "100_steps",
}
PRESETS = {"tiny": TINY}
