"""Finite scalar quantisation (Mentzer et al. 2024): the autoencoder of vqvae.py without codebooks.

Default: Fashion-MNIST, 7 x 7 tokens of 8 x 5 x 5 x 5 = 1,000 values.
  command    NPROC=1 launch/local.sh --config=configs/fsq.py
  hardware   one CPU core of two
  time       7 minutes
  score      4.48 bits/dim, PSNR 23.6 dB, perplexity of the codes 357 of 1,000
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

Presets, as in --config=configs/fsq.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

VQVAE = base.read_module(Path(__file__).with_name("vqvae.py"))


def get_config() -> ConfigDict:
    """Rounding instead of a codebook."""
    config = VQVAE.get_config()
    config.duration = "5_epochs"
    config.precision = "float32"
    config.vqvae.quantizer = "fsq"
    return config


_TINY = {
    key: value
    for key, value in VQVAE.PRESETS["tiny"].items()
    if key not in ("vqvae.codes", "vqvae.code_dim")
}
PRESETS = {"tiny": {**_TINY, "vqvae.levels": (5, 3, 3)}}
