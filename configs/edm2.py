"""EDM2 (Karras et al. 2024): magnitude-preserving network, learned uncertainty, power averages.

Default: Fashion-MNIST, a network of 1.6M parameters.
  command    launch/local.sh --config=configs/edm2.py
  hardware   2 CPU cores
  time       not run to the end yet
  score      not measured yet

Presets, as in --config=configs/edm2.py:tiny:
  tiny         8 x 8 digits, a test of the installation in under 90 s; the samples are blurred
  imagenet64   EDM2-S on 64 x 64 ImageNet, for accelerators (not run by us)
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

EDM = base.read_module(Path(__file__).with_name("edm.py"))


def get_config() -> ConfigDict:
    """The paper's config G, sized for two CPU cores."""
    config = EDM.get_config()
    config.optimizer.learning_rate = 1e-2
    config.optimizer.b2 = 0.99
    config.schedule.name = "inverse_sqrt"
    config.schedule.warmup = "1000_steps"
    config.ema.decay = ()
    config.ema.power = (0.10, 0.05)
    config.ema.snapshots = "5_percent"
    config.diffusion.weighting = "uncertainty"
    config.diffusion.times_mean = -0.4
    config.diffusion.times_std = 1.0
    config.diffusion.steps = 32
    with config.unlocked():
        config.model.network = "edm2_unet"
        network = {
            "channels": 32,
            "multipliers": (1, 2, 2),
            "blocks": 1,
            "attention": (7,),
            "head_size": 32,
            "dropout": 0.0,
            "label_balance": 0.5,
            "residual_balance": 0.3,
            "attention_balance": 0.3,
            "concat_balance": 0.5,
            "clip": 256.0,
        }
        config.model.denoiser = ConfigDict(network)
    return config


# Karras et al. 2024, table 6, EDM2-S.
_S = {
    "precision": "bfloat16",
    "batch_size": 2048,
    "schedule.warmup": "70000_steps",
    "diffusion.class_conditional": True,
    "evals.every": "16384_steps",
    "model.denoiser.channels": 192,
    "model.denoiser.multipliers": (1, 2, 3, 4),
    "model.denoiser.blocks": 3,
    "model.denoiser.attention": (16, 8),
    "model.denoiser.head_size": 64,
}
PRESETS = {
    "tiny": {k: v for k, v in EDM.TINY.items() if not k.startswith("model.")}
    | {
        "schedule.warmup": "100_steps",
        "model.denoiser.channels": 16,
        "model.denoiser.multipliers": (1, 2),
        "model.denoiser.attention": (4,),
        "model.denoiser.head_size": 16,
    },
    "imagenet64": _S
    | {
        "dataset.name": "imagenet_resized/64x64",
        "dataset.flip": True,
        "duration": "1048576_steps",
        "diffusion.times_mean": -0.8,
        "diffusion.times_std": 1.6,
    },
}
