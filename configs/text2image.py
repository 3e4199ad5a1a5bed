"""Text to image: a rectified flow over pixels that reads captions with a transformer of its own.

Default: faces in pixel art, 16 x 16 (`avatars`), and a diffusion transformer with cross-attention.
  command    launch/local.sh --config=configs/text2image.py
  hardware   2 CPU cores
  time       not measured yet
  score      not measured yet

Presets, as in --config=configs/text2image.py:tiny:
  tiny       a very small model of the same, a test of the installation in under 90 s
  emoji      32 x 32 emoji from their names and keywords; not measured yet
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

FLOW = base.read_module(Path(__file__).with_name("flow.py"))


def get_config() -> ConfigDict:
    """Captioned faces, for two CPU cores and 40 minutes."""
    config = FLOW.get_config()
    config.dataset.name = "avatars"
    config.dataset.validation = ""  # it has one
    config.dataset.text.tokenizer = "wordpiece"
    config.dataset.text.vocabulary_size = 512
    config.dataset.text.length = 40
    config.duration = "180000_examples"
    config.diffusion.class_conditional = False
    config.diffusion.conditions = ("text",)
    config.diffusion.context_depth = 2
    config.diffusion.guidance = 2.0
    with config.unlocked():
        config.model.network = "dit"
        network = {"patch_size": 2, "width": 128, "depth": 6, "heads": 4}
        config.model.denoiser = ConfigDict(network)
    return config


TINY = {k: v for k, v in FLOW.TINY.items() if not k.startswith(("model.", "dataset."))}
PRESETS = {
    "tiny": TINY
    | {
        "diffusion.context_width": 32,
        "diffusion.context_depth": 1,
        "diffusion.context_heads": 2,
        "model.denoiser.width": 32,
        "model.denoiser.depth": 2,
        "model.denoiser.heads": 2,
    },
    "emoji": {
        "dataset.name": "emoji",
        "dataset.image_size": 32,
        "dataset.validation": "10_percent",
        "dataset.text.vocabulary_size": 2048,
        "dataset.text.length": 64,
        "diffusion.guidance": 3.0,
        "model.denoiser.patch_size": 4,
    },
}
