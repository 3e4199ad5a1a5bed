"""Denoising diffusion on images.

Default: Fashion-MNIST, a 2.1M-parameter U-Net over 2 x 2 patches, a rectified flow at logit-normal
times (Esser et al. 2024), 600,000 examples.
  command    launch/local.sh --config=configs/ddpm.py
  hardware   2 CPU cores
  time       22 min 40 s, evaluations and compilation included, with oneDNN in bfloat16
             (docs/performance.md); without oneDNN a step takes 2.7 times as long
  score      fd_classifier 7.0, 25 network calls an image; 5.33 +- 0.07 bits/dim (variational bound,
             256 validation images), not the training objective; docs/images/ddpm_fashion_mnist.png

Presets, as in --config=configs/ddpm.py:tiny:
  tiny       8 x 8 digits, a test of the installation in under 90 s; the samples are blurred
  digits     8 x 8 digits with v-prediction in discrete time: 20 min 36 s on a busy machine,
             4.54 +- 0.04 bits/dim
  mnist      the default on MNIST
  cifar10    the 35.7M-parameter network and the settings of Ho et al. 2020 for one accelerator
             (their FID after 800,000 steps: 3.17; not run by us)
  celeba64   the network of Song et al. 2021 (DDIM) for CelebA at 64 x 64 (not run by us)
  imagenet64 the network of Nichol & Dhariwal 2021 for ImageNet at 64 x 64, without their learned
             variances, for accelerators (not run by us)
  super_resolution       the default, conditioned on the image downscaled by 4 (not run yet)
  super_resolution_tiny  8 x 8 digits from 2 x 2 pixels: tiny with this condition
  inpainting             the default, conditioned on the image outside a rectangle (not run yet)
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.diffusion import Options


def get_config() -> ConfigDict:
    """Fashion-MNIST, for two CPU cores and half an hour."""
    config = base.base()
    config.method = "diffusion"
    config.dataset.name = "fashion_mnist"
    config.dataset.validation = "5_percent"
    config.batch_size = 32
    config.duration = "600000_examples"
    config.precision = "auto"
    config.optimizer.learning_rate = 1e-3
    config.schedule.name = "cosine"
    config.schedule.warmup = "200_steps"
    config.ema.decay = (0.999,)
    config.evals.limit = 256
    with config.unlocked():
        config.diffusion = ConfigDict(
            Options(
                path="flow",
                num_timesteps=0,
                prediction="velocity",
                times="logit_normal",
                eval_timesteps=16,
                sampler="heun",
                steps=13,  # 25 network calls
            )._asdict()
        )
        network = {
            "channels": 32,
            "multipliers": (1, 4),
            "blocks": 1,
            "attention": (),  # the middle block always has attention
            "heads": 1,
            "dropout": 0.0,
            "patch_size": 2,
        }
        config.model = ConfigDict({"network": "unet", "denoiser": network})
    return config


# Discrete time as in Ho et al. 2020, with v-prediction and the cosine of Nichol & Dhariwal 2021.
_DISCRETE = {
    "precision": "float32",
    "diffusion.path": "cosine",
    "diffusion.num_timesteps": 1000,
    "diffusion.prediction": "v",
    "diffusion.times": "uniform",
    "diffusion.sampler": "ddim",
    "diffusion.steps": 50,
}
_DIGITS = _DISCRETE | {
    "dataset.name": "digits",
    "dataset.validation": "10_percent",
    "dataset.test": "10_percent",
    "evals.batch_size": 64,
    "model.denoiser.attention": (4,),
    "model.denoiser.patch_size": 1,
}
# Ho et al. 2020, appendix B, and their code for CIFAR-10.
_PAPER = _DISCRETE | {
    "dataset.flip": True,
    "dataset.validation": "",
    "batch_size": 128,
    "optimizer.learning_rate": 2e-4,
    "schedule.name": "constant",
    "schedule.warmup": "5000_steps",
    "ema.decay": (0.9999,),
    "evals.every": "20000_steps",
    "evals.limit": 0,
    "checkpoint.every": "10000_steps",
    "diffusion.path": "linear",
    "diffusion.prediction": "epsilon",
    "diffusion.variance": "fixed_large",
    "diffusion.sampler": "ddpm",
    "diffusion.steps": 0,
    "model.denoiser.channels": 128,
    "model.denoiser.blocks": 2,
    "model.denoiser.attention": (16,),
    "model.denoiser.dropout": 0.1,
    "model.denoiser.patch_size": 1,
}

_TINY = _DIGITS | {
    "duration": "300_steps",
    "schedule.warmup": "20_steps",
    "evals.every": "50_percent",
    "evals.limit": 64,
    "evals.samples": 16,
    "log.every": "20_steps",
    "diffusion.num_timesteps": 100,
    "diffusion.eval_timesteps": 8,
    "diffusion.steps": 20,
    "model.denoiser.channels": 16,
    "model.denoiser.multipliers": (1, 2),
}
# Conditioned on the image downscaled by 4, which is never dropped: samples cannot be guided.
_SMALL = {
    "dataset.derived": (("small", "smaller", 4),),
    "diffusion.conditions": ("small",),
    "diffusion.label_dropout": 0.0,
}

PRESETS = {
    "tiny": _TINY,
    "digits": _DIGITS
    | {
        "batch_size": 64,
        "duration": "100_epochs",
        "evals.limit": 0,
        "model.denoiser.multipliers": (1, 2),
        "model.denoiser.blocks": 2,
    },
    "mnist": {"dataset.name": "mnist"},
    "super_resolution": _SMALL,
    "super_resolution_tiny": _TINY | _SMALL,
    "inpainting": {
        "dataset.derived": (("mask", "box", 0.6), ("known", "outside", "mask")),
        "diffusion.conditions": ("known", "mask"),
        "diffusion.label_dropout": 0.0,
    },
    "cifar10": _PAPER
    | {
        "dataset.name": "cifar10",
        "evals.split": "test",  # the paper's network is trained on all of train
        "duration": "800000_steps",
        "model.denoiser.multipliers": (1, 2, 2, 2),
    },
    "celeba64": _PAPER
    | {
        "dataset.name": "celeb_a",
        "dataset.image_size": 64,
        "duration": "500000_steps",
        "model.denoiser.multipliers": (1, 2, 2, 2, 4),
    },
    "imagenet64": _PAPER
    | {
        "dataset.name": "imagenet_resized/64x64",
        "precision": "bfloat16",
        "duration": "1500000_steps",
        "optimizer.learning_rate": 1e-4,
        "diffusion.path": "cosine",
        "diffusion.num_timesteps": 4000,
        "model.denoiser.blocks": 3,
        "model.denoiser.multipliers": (1, 2, 3, 4),
        "model.denoiser.attention": (16, 8),
        "model.denoiser.heads": 4,
        "model.denoiser.dropout": 0.0,
    },
}
