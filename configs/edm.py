"""EDM (Karras et al. 2022) on images.

Default: Fashion-MNIST, the U-Net of configs/ddpm.py with EDM's preconditioning, noise levels and
sampler.
  command    launch/local.sh --config=configs/edm.py
  hardware   2 CPU cores
  time       not run to the end yet
  score      not measured yet

Presets, as in --config=configs/edm.py:tiny:
  tiny       8 x 8 digits, a test of the installation in under 90 s; the samples are blurred
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

DDPM = base.read_module(Path(__file__).with_name("ddpm.py"))


def get_config() -> ConfigDict:
    """Preconditioning, log-normal noise and Heun's method of Karras et al. 2022."""
    config = DDPM.get_config()
    config.diffusion.path = "edm"
    config.diffusion.num_timesteps = 0
    config.diffusion.prediction = "edm"
    config.diffusion.times = "lognormal"
    config.diffusion.times_mean = -1.2
    config.diffusion.times_std = 1.2
    config.diffusion.sampler = "heun"
    config.diffusion.spacing = "karras"
    config.diffusion.steps = 18  # 35 network calls
    return config


_OWN = ("path", "num_timesteps", "prediction", "times", "sampler", "steps")
TINY = {
    key: value
    for key, value in DDPM.PRESETS["tiny"].items()
    if key not in [f"diffusion.{name}" for name in _OWN]
}
PRESETS = {"tiny": TINY}
