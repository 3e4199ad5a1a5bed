"""Diffusion transformer (Peebles & Xie 2023) on straight paths (Ma et al. 2024, SiT).

Default: Fashion-MNIST, 6 blocks of width 256 over 4 x 4 patches, conditioned on the label.
  command    launch/local.sh --config=configs/dit.py
  hardware   2 CPU cores
  time       not run to the end yet
  score      not measured yet

Presets, as in --config=configs/dit.py:tiny:
  tiny                 8 x 8 digits, a test of the installation in under 90 s; the samples are
                       blurred
  captions             32 x 32 emoji from their names and keywords, with cross-attention to word
                       embeddings (not run to the end yet)
  captions_tiny        the same at 16 x 16 for 100 steps, a test
  mmdit                captions with joint attention instead (MM-DiT, Esser et al. 2024; not run to
                       the end yet)
  mmdit_tiny           the same at 16 x 16 for 100 steps, a test
  imagenet256-latent   DiT-XL/2 (SiT-XL/2) over the latents of autoencoder_kl.py:imagenet256, for
                       accelerators (not run by us)
  sd3-medium           the transformer of Stable Diffusion 3 medium, two billion parameters, over
                       the latents of autoencoder_kl.py:captions256, for accelerators (not run by
                       us). Its texts are bytes without an encoder, and emoji stand in for your own
                       data. Give these to both: --config.dataset.name=folder
                       --config.dataset.path=DIR, and here --config.stages.autoencoder=RUN
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
        network = {"patch_size": 4, "width": 256, "depth": 6, "heads": 4}
        config.model.denoiser = ConfigDict(network)
    return config


_CAPTIONS = {
    "dataset.name": "emoji",
    "dataset.image_size": 32,
    "dataset.validation": "10_percent",
    "dataset.text.tokenizer": "wordpiece",
    "dataset.text.vocabulary_size": 2048,
    "dataset.text.length": 64,
    "diffusion.class_conditional": False,
    "diffusion.conditions": ("text",),
    "diffusion.guidance": 3.0,
}
_TINY_CAPTIONS = {
    "dataset.image_size": 16,
    "duration": "100_steps",
    "schedule.warmup": "20_steps",
    "evals.every": "50_percent",
    "evals.limit": 64,
    "evals.samples": 16,
    "log.every": "20_steps",
    "model.denoiser.width": 32,
    "model.denoiser.depth": 2,
    "model.denoiser.heads": 2,
}
_JOINT = {"model.network": "mmdit"}
_LATENT = {
    "dataset.image_size": 256,
    "dataset.codes": "autoencoder",
    "precision": "bfloat16",
    "optimizer.learning_rate": 1e-4,
    "schedule.name": "constant",
    "ema.decay": (0.9999,),
    "evals.every": "20000_steps",
    "model.denoiser.patch_size": 2,
}
TINY = {k: v for k, v in FLOW.TINY.items() if not k.startswith("model.")}
PRESETS = {
    "tiny": TINY
    | {
        "model.denoiser.patch_size": 2,
        "model.denoiser.width": 32,
        "model.denoiser.depth": 2,
        "model.denoiser.heads": 2,
    },
    "captions": _CAPTIONS,
    "captions_tiny": _CAPTIONS | _TINY_CAPTIONS,
    "mmdit": _CAPTIONS | _JOINT,
    "mmdit_tiny": _CAPTIONS | _TINY_CAPTIONS | _JOINT,
    "imagenet256-latent": _LATENT
    | {
        "dataset.name": "imagenet2012",
        "dataset.validation": "",
        "stages.autoencoder": "autoencoder_kl.py:imagenet256",
        "batch_size": 256,
        "duration": "400000_steps",
        "diffusion.times": "uniform",
        "diffusion.steps": 125,
        "diffusion.guidance": 1.5,
        "model.denoiser.width": 1152,
        "model.denoiser.depth": 28,
        "model.denoiser.heads": 16,
    },
    "sd3-medium": _LATENT
    | _CAPTIONS
    | _JOINT
    | {
        "dataset.image_size": 256,
        "dataset.text.tokenizer": "bytes",
        "dataset.text.vocabulary_size": 0,
        "dataset.text.length": 128,
        "stages.autoencoder": "autoencoder_kl.py:captions256",
        "batch_size": 4096,
        "duration": "500000_steps",
        "schedule.warmup": "1000_steps",
        "diffusion.steps": 25,
        "diffusion.guidance": 5.0,
        "diffusion.context_width": 1536,
        "model.denoiser.width": 1536,
        "model.denoiser.depth": 24,
        "model.denoiser.heads": 24,
    },
}
