"""Text to image: a rectified flow over pixels that reads captions with a transformer of its own.

Default: faces in pixel art, 16 x 16 (`avatars`), and a diffusion transformer with cross-attention.
  command    launch/local.sh --config=configs/text2image.py
  hardware   2 CPU cores
  time       57 minutes on one core of two (busy)
  score      99.8 % of the attributes that captions name are right, 99.7 % in combinations that are
             not in the training data; docs/images/text2image_prompts.png

Presets, as in --config=configs/text2image.py:tiny:
  tiny       a very small model of the same, a test of the installation in under 90 s
  clip       the default with a frozen text encoder, that of clip.py:avatars, which is trained first
             (another one: --config.stages.text=RUN, of clip.py, bert.py, summarise.py or t5.py,
             with its tokenizer); not measured yet
  clip_tiny  a very small model of that
  emoji      32 x 32 emoji from their names and keywords, 39 minutes: shapes and colours, but few
             details; clip.py finds 10 % of the samples by caption among 100, 21 % of real ones
  mmdit      the default with joint attention instead (MM-DiT, Esser et al. 2024); not measured yet
  mmdit_tiny a very small model of that
  sd3-medium the transformer of Stable Diffusion 3 medium, two billion parameters, over the latents
             of autoencoder_kl.py:captions256, for accelerators (not run by us). Emoji stand in for
             your own data. Give these to both: --config.dataset.name=folder
             --config.dataset.path=DIR, and here --config.stages.autoencoder=RUN
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
        network = {"patch_size": 2, "width": 128, "depth": 6, "heads": 4, "remat": "none"}
        config.model.denoiser = ConfigDict(network)
    return config


_JOINT = {"model.network": "mmdit"}
_CLIP = {
    "dataset.text.length": 48,  # that of clip.py:avatars
    "stages.text": "clip.py:avatars",
    "diffusion.text_encoder": "text",
}
TINY = {k: v for k, v in FLOW.TINY.items() if not k.startswith(("model.", "dataset."))}
TINY |= {
    "diffusion.context_width": 32,
    "diffusion.context_depth": 1,
    "diffusion.context_heads": 2,
    "model.denoiser.width": 32,
    "model.denoiser.depth": 2,
    "model.denoiser.heads": 2,
}
PRESETS = {
    "tiny": TINY,
    "mmdit": _JOINT,
    "mmdit_tiny": TINY | _JOINT,
    "clip": _CLIP,
    "clip_tiny": TINY | _CLIP | {"stages.text": "clip.py:avatars_tiny"},
    "emoji": {
        "dataset.name": "emoji",
        "dataset.image_size": 32,
        "dataset.validation": "10_percent",
        "dataset.text.vocabulary_size": 2048,
        "dataset.text.length": 64,
        "duration": "100000_examples",
        "diffusion.guidance": 3.0,
        "model.denoiser.patch_size": 4,
    },
    "sd3-medium": _JOINT
    | {
        "dataset.name": "emoji",
        "dataset.image_size": 256,
        "dataset.validation": "10_percent",
        "dataset.codes": "autoencoder",
        "dataset.text.vocabulary_size": 32000,
        "dataset.text.length": 77,
        "stages.autoencoder": "autoencoder_kl.py:captions256",
        "precision": "bfloat16",
        "batch_size": 4096,
        "duration": "500000_steps",
        "optimizer.learning_rate": 1e-4,
        "schedule.name": "constant",
        "schedule.warmup": "1000_steps",
        "ema.decay": (0.9999,),
        "evals.every": "20000_steps",
        "diffusion.steps": 25,
        "diffusion.guidance": 5.0,
        "diffusion.context_width": 1536,
        "diffusion.context_depth": 12,
        "diffusion.context_heads": 24,
        "model.denoiser.width": 1536,
        "model.denoiser.depth": 24,
        "model.denoiser.heads": 24,
        "model.denoiser.remat": "dots",
    },
}
