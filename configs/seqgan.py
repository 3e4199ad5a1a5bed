"""SeqGAN (Yu et al. 2017) on the characters of Shakespeare's plays.

Default: an LSTM of width 128 that writes 32 characters, first trained by maximum likelihood.
  command    NPROC=1 launch/local.sh --config=configs/seqgan.py
  hardware   one CPU core of two
  time       21 min 53 s, other programs beside it
  score      perplexity per character 6.82 before the game and 7.08 after 500 steps of it; the
             discriminator does not tell its texts from real ones, a reader does

Presets, as in --config=configs/seqgan.py:tiny:
  tiny       a very small model of Python's standard library, byte by byte: a test of the
             installation in about a minute
  gumbel     the same game on relaxed tokens, with the relativistic loss and the temperatures of
             Nie et al. 2019 (RelGAN), without its relational memory; not measured yet
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.text_gan import Options


def get_config() -> ConfigDict:
    """tiny_shakespeare, for two CPU cores."""
    config = base.base()
    config.method = "text_gan"
    config.dataset.name = "tiny_shakespeare"
    config.dataset.validation = "10_percent"
    config.dataset.text.tokenizer = "characters"
    config.dataset.text.length = 32
    config.evals.judges = ("diversity",)
    config.batch_size = 64
    config.duration = "4000_steps"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.clip_norm = 5.0
    config.optimizer.networks = ConfigDict({"discriminator": {"learning_rate": 1e-3}})
    # At a constant 2e-3 the policy gradient ruined the generator within 100 steps.
    config.schedule.name = "cosine"
    config.ema.decay = ()
    config.evals.samples = 16
    config.log.every = "50_steps"
    with config.unlocked():
        options = Options(
            pretraining="3000_steps",
            discriminator_pretraining="500_steps",
            critic_steps=2,
            rollouts=4,
            baseline=True,
        )
        config.text_gan = ConfigDict(options._asdict())
        sizes, features = (1, 2, 3, 4, 5, 6, 8, 10), (32, 64, 64, 64, 64, 32, 32, 32)
        config.model = ConfigDict(
            {
                "network": "text_cnn",
                "language": "recurrent",
                "generator": {"cell": "lstm", "width": 128, "depth": 1, "dropout": 0.0},
                "discriminator": {
                    "width": 32,
                    "sizes": sizes,
                    "features": features,
                    "dropout": 0.25,
                },
            }
        )
    return config


# A very small game on Python's standard library, byte by byte.
TINY = {
    "dataset.name": "python",
    "dataset.validation": "1_percent",
    "dataset.text.tokenizer": "bytes",
    "dataset.text.length": 8,
    "batch_size": 16,
    "duration": "120_steps",
    "evals.every": "50_percent",
    "evals.limit": 64,
    "evals.batch_size": 64,
    "evals.samples": 2,
    "log.every": "20_steps",
    "text_gan.pretraining": "60_steps",
    "text_gan.discriminator_pretraining": "20_steps",
    "text_gan.critic_steps": 1,
    "text_gan.rollouts": 2,
    "model.generator.width": 16,
    "model.discriminator.width": 8,
    "model.discriminator.sizes": (1, 2, 4),
    "model.discriminator.features": (8, 8, 8),
}
GUMBEL = {
    "text_gan.kind": "gumbel",
    "text_gan.loss": "relativistic",
    "text_gan.baseline": False,
    "optimizer.learning_rate": 5e-4,
    "optimizer.networks.discriminator.learning_rate": 1e-4,
    "schedule.name": "constant",
}
PRESETS = {"tiny": TINY, "gumbel": GUMBEL}
