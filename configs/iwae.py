"""Importance-weighted autoencoder (Burda et al. 2016): k = 50, one stochastic layer.

Default: Fashion-MNIST with dynamic binarisation; the paper's network, 784-200-200-50.
  command    NPROC=1 launch/local.sh --config=configs/iwae.py
  hardware   one CPU core of two
  time       24 minutes
  score      log p(x) -237.9 nats (binary images, 50 samples), fd_classifier 32.4
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

Presets, as in --config=configs/iwae.py:tiny:
  tiny       8 x 8 digits, a test of the installation in about a minute
  dreg       the doubly reparameterised gradient (Tucker et al. 2019)
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

VAE = base.read_module(Path(__file__).with_name("vae.py"))


def get_config() -> ConfigDict:
    """The paper's network and its optimizer's epsilon."""
    config = VAE.get_config()
    config.duration = "30_epochs"
    config.optimizer.eps = 1e-4
    config.vae.latent_dim = 50
    config.vae.bound = "iwae"
    config.vae.samples = 50
    config.vae.eval_samples = 50
    for player in ("encoder", "decoder"):
        config.model[player].widths = (200, 200)
    return config


PRESETS = {
    "tiny": VAE.PRESETS["tiny"] | {"vae.samples": 5},
    "dreg": {"vae.bound": "dreg"},
}
