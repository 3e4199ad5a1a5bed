"""Latent diffusion (Rombach et al. 2022): a flow over the latents of a KL-regularised autoencoder.

Default: Fashion-MNIST, the 7 x 7 x 4 latents of configs/autoencoder_kl.py, which is trained first.
  command    launch/local.sh --config=configs/latent.py
             trains the autoencoder first, in stages/autoencoder under the workdir; to use an
             existing one: --config.stages.autoencoder=runs/autoencoder_kl
  hardware   2 CPU cores
  time       not run to the end yet
  score      not measured yet

Presets, as in --config=configs/latent.py:tiny:
  tiny       on configs/autoencoder_kl.py:tiny, a test of the installation in about two minutes
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

FLOW = base.read_module(Path(__file__).with_name("flow.py"))


def get_config() -> ConfigDict:
    """Rectified flow over latents, whose mean and standard deviation are measured first."""
    config = FLOW.get_config()
    config.dataset.codes = "autoencoder"
    config.evals.judges = ("fidelity",)
    with config.unlocked():
        config.stages.autoencoder = "autoencoder_kl.py"
        network = {
            "channels": 64,
            "multipliers": (2,),
            "blocks": 2,
            "attention": (7,),
            "heads": 4,
            "dropout": 0.0,
            "patch_size": 1,
        }
        config.model.denoiser = ConfigDict(network)
    return config


PRESETS = {
    "tiny": FLOW.TINY
    | {
        "stages.autoencoder": "autoencoder_kl.py:tiny",
        "evals.judges": (),
        "model.denoiser.attention": (),
        "model.denoiser.multipliers": (1,),
    },
}
