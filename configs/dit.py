"""Diffusion transformer (Peebles & Xie 2023) on straight paths (Ma et al. 2024, SiT).

Default: Fashion-MNIST, 6 blocks of width 256 over 4 x 4 patches, conditioned on the label.
  command    launch/local.sh --config=configs/dit.py
  hardware   2 CPU cores
  time       not run to the end yet
  score      not measured yet

Presets, as in --config=configs/dit.py:tiny:
  tiny                 8 x 8 digits, a test of the installation in under 90 s; the samples are
                       blurred
  imagenet256-latent   DiT-XL/2 (SiT-XL/2) over the latents of autoencoder_kl.py:imagenet256, for
                       accelerators (not run by us)
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

FLOW = base.read_module(Path(__file__).with_name("flow.py"))


def get_config() -> ConfigDict:
    """A transformer with adaLN-zero instead of the U-Net."""
    config = FLOW.get_config()
    config.optimizer.learning_rate = 5e-4
    with config.unlocked():
        config.model.network = "dit"
        network = {"patch_size": 4, "width": 256, "depth": 6, "heads": 4, "remat": "none"}
        config.model.denoiser = ConfigDict(network)
    return config


TINY = {k: v for k, v in FLOW.TINY.items() if not k.startswith("model.")}
PRESETS = {
    "tiny": TINY
    | {
        "model.denoiser.patch_size": 2,
        "model.denoiser.width": 32,
        "model.denoiser.depth": 2,
        "model.denoiser.heads": 2,
    },
    "imagenet256-latent": {
        "dataset.name": "imagenet2012",
        "dataset.image_size": 256,
        "dataset.validation": "",
        "dataset.codes": "autoencoder",
        "stages.autoencoder": "autoencoder_kl.py:imagenet256",
        "precision": "bfloat16",
        "batch_size": 256,
        "duration": "400000_steps",
        "optimizer.learning_rate": 1e-4,
        "schedule.name": "constant",
        "ema.decay": (0.9999,),
        "evals.every": "20000_steps",
        "diffusion.times": "uniform",
        "diffusion.steps": 125,
        "diffusion.guidance": 1.5,
        "model.denoiser.patch_size": 2,
        "model.denoiser.width": 1152,
        "model.denoiser.depth": 28,
        "model.denoiser.heads": 16,
    },
}
