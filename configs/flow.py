"""Rectified flow (Liu et al. 2023; Lipman et al. 2023; Esser et al. 2024), label-conditional.

Default: Fashion-MNIST, the U-Net and the path of configs/ddpm.py, with guidance.
  command    launch/local.sh --config=configs/flow.py
  hardware   2 CPU cores
  time       not run to the end yet
  score      not measured yet

Presets, as in --config=configs/flow.py:tiny:
  tiny       8 x 8 digits, a test of the installation in under 90 s; the samples are blurred
  ot         noise and data coupled by optimal transport within a batch (Tong et al. 2024)
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

DDPM = base.read_module(Path(__file__).with_name("ddpm.py"))


def get_config() -> ConfigDict:
    """The config of ddpm.py, with labels and mild guidance."""
    config = DDPM.get_config()
    config.diffusion.class_conditional = True
    config.diffusion.guidance = 1.5
    return config


TINY = DDPM.PRESETS["tiny"] | {
    "diffusion.path": "flow",
    "diffusion.num_timesteps": 0,
    "diffusion.prediction": "velocity",
    "diffusion.times": "logit_normal",
    "diffusion.sampler": "heun",
    "diffusion.steps": 13,
}
PRESETS = {
    "tiny": TINY,
    "ot": {"diffusion.coupling": "optimal_transport"},
}
