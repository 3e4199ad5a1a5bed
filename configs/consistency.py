"""Consistency models and mean flows: samples in one or two calls of the network.

Default: improved consistency training (Song & Dhariwal 2024) on Fashion-MNIST, with the U-Net of
configs/ddpm.py, 320,000 examples.
  command    launch/local.sh --config=configs/consistency.py
  hardware   2 CPU cores
  time       not measured
  score      not measured

Presets, as in --config=configs/consistency.py:tiny:
  tiny       8 x 8 digits, a test of the installation: 46 s of one core; the samples are blurred
  ect        the schedule of Geng et al. 2024 on the default's data
  continuous TrigFlow and its tangent (Lu & Song 2025) on the default's data
  mean_flow  the average velocity (Geng et al. 2025) on the default's data, with labels
  distilled  consistency distillation (Song et al. 2023) of configs/ddpm.py, which is trained first
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.consistency import Options

DDPM = base.read_module(Path(__file__).with_name("ddpm.py"))


def get_config() -> ConfigDict:
    """Fashion-MNIST, for two CPU cores."""
    config = base.base()
    config.method = "consistency"
    config.dataset.name = "fashion_mnist"
    config.dataset.validation = "5_percent"
    config.batch_size = 32
    config.duration = "320000_examples"
    config.precision = "auto"
    config.optimizer.learning_rate = 5e-4
    config.schedule.warmup = "200_steps"
    config.ema.decay = (0.999,)
    config.evals.limit = 256
    with config.unlocked():
        config.consistency = ConfigDict(Options(most=160)._asdict())
        config.model = DDPM.get_config().model
    return config


PRESETS = {
    "tiny": {
        "precision": "float32",
        "dataset.name": "digits",
        "dataset.validation": "10_percent",
        "dataset.test": "10_percent",
        "duration": "300_steps",
        "schedule.warmup": "20_steps",
        "evals.every": "50_percent",
        "evals.batch_size": 64,
        "evals.limit": 64,
        "evals.samples": 16,
        "log.every": "20_steps",
        "consistency.most": 40,
        "model.denoiser.channels": 16,
        "model.denoiser.multipliers": (1, 2),
        "model.denoiser.patch_size": 1,
    },
    "ect": {
        "consistency.grid": "ratio",
        "consistency.fewest": 2,
        "consistency.most": 256,
    },
    "continuous": {
        "consistency.kind": "continuous",
        "consistency.path": "cosine",
        "consistency.shift": 0.5,
        "consistency.weighting": "uncertainty",
        "consistency.times_mean": -1.0,
        "consistency.times_std": 1.4,
    },
    "mean_flow": {
        "consistency.kind": "mean_flow",
        "consistency.path": "flow",
        "consistency.prediction": "velocity",
        "consistency.weighting": "simple",
        "consistency.times_mean": -0.4,
        "consistency.times_std": 1.0,
        "consistency.class_conditional": True,
        "consistency.label_dropout": 0.1,
    },
    "distilled": {
        "stages.teacher": "ddpm.py",
        "checkpoint.init_map": ((r"^params/denoiser/(.*)$", r"ema/0.999/denoiser/\1"),),
        "consistency.kind": "distillation",
        "consistency.path": "flow",
        "consistency.prediction": "velocity",
        "consistency.times": "uniform",
        "consistency.fewest": 17,
        "consistency.most": 17,
        "consistency.weighting": "simple",
        "consistency.target_decay": 0.95,
    },
}
