"""The toy of reinforce.py on the labels of the digits."""

from ml_collections import ConfigDict

from genjax import config as base


def get_config() -> ConfigDict:
    """Ten prompts, nine answers."""
    config = base.base()
    config.method = "families.reinforce"
    config.dataset.name = "digits"
    config.dataset.test = "10_percent"
    config.dataset.threads = 1
    config.batch_size = 32
    config.duration = "400_steps"
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.learning_rate = 2.0
    config.optimizer.clip_norm = 0.0
    config.ema.decay = ()
    config.evals.samples, config.evals.split = 0, "test"
    config.evals.every = ""
    config.evals.limit = 64
    config.log.every = "1_steps"
    with config.unlocked():
        config.reinforce = ConfigDict({"passes": 2})
    return config
