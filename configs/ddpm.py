"""DDPM (Ho et al. 2020) on images."""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.ddpm import Options


def get_config() -> ConfigDict:
    """Fashion-MNIST on a laptop's CPU."""
    config = base.base()
    config.method = "ddpm"
    config.dataset.name = "fashion_mnist"
    config.dataset.validation = "5_percent"
    config.batch_size = 32
    config.duration = "180000_examples"
    config.optimizer.learning_rate = 1e-3
    config.schedule.name = "cosine"
    config.schedule.warmup = "200_steps"
    config.ema.decay = (0.999,)
    config.evals.limit = 256
    with config.unlocked():
        config.diffusion = ConfigDict(
            Options(eval_timesteps=16, sampler="ddim", steps=50)._asdict()
        )
        config.model = ConfigDict(
            {
                "channels": 32,
                "multipliers": (1, 4),
                "blocks": 1,
                "attention": (),
                "heads": 1,
                "dropout": 0.0,
                "patch_size": 2,
            }
        )
    return config


PRESETS = {
    "tiny": {
        "dataset.name": "digits",
        "dataset.validation": "10_percent",
        "dataset.test": "10_percent",
        "duration": "300_steps",
        "schedule.warmup": "20_steps",
        "evals.every": "150_steps",
        "evals.samples": 16,
        "evals.limit": 64,
        "evals.batch_size": 64,
        "log.every": "20_steps",
        "diffusion.num_timesteps": 100,
        "diffusion.eval_timesteps": 8,
        "diffusion.steps": 20,
        "model.channels": 16,
        "model.multipliers": (1, 2),
        "model.blocks": 1,
        "model.attention": (4,),
        "model.patch_size": 1,
    },
}
