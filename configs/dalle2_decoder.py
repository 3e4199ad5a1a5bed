"""DALL-E 2's decoder (Ramesh et al. 2022): a picture from CLIP's vector of it and its caption.

Default: the 16 x 16 faces of `avatars`, a rectified flow with a U-Net, and a prior that draws the
vector when only a caption is given.
  command    launch/local.sh --config=configs/dalle2_decoder.py
             trains configs/dalle2_prior.py and its CLIP first, in stages/prior under the workdir;
             to use an existing run: --config.stages.prior=runs/dalle2_prior
  hardware   2 CPU cores
  time       76 minutes after the prior, on one core of two (busy)
  score      99.7 % of the attributes that captions name are right, 99.1 % in combinations that are
             not in the training data; docs/images/dalle2_prompts.png

Presets, as in --config=configs/dalle2_decoder.py:tiny:
  tiny       very small models, a test of the installation; the samples are noise
  no_prior   with a CLIP alone: a caption is drawn without a vector
  paper      near the size of the paper's decoder at 64 x 64, for accelerators and your own
             captioned pictures, of which you train a dalle2_prior.py:paper first; not run by us
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

DDPM = base.read_module(Path(__file__).with_name("ddpm.py"))


def get_config() -> ConfigDict:
    """Captioned faces, for two CPU cores."""
    config = DDPM.get_config()
    config.dataset.name = "avatars"
    config.dataset.image_size = (16,)
    config.dataset.validation = ""
    config.dataset.text.tokenizer = "wordpiece"
    config.dataset.text.vocabulary_size = 512
    config.dataset.text.length = 48
    config.duration = "120000_examples"
    config.diffusion.conditions = ("text",)
    config.diffusion.context_depth = 2
    config.diffusion.embedding = "prior"
    config.diffusion.embedding_dropout = 0.1  # as in section 2.1
    config.diffusion.text_dropout = 0.5
    config.diffusion.label_dropout = 0.1
    config.diffusion.guidance = 2.0
    with config.unlocked():
        config.stages = ConfigDict({"prior": "dalle2_prior.py", "clip": ""})
        network = {
            "channels": 48,
            "multipliers": (1, 3),
            "blocks": 1,
            "attention": (8,),
            "heads": 4,
            "dropout": 0.0,
            "patch_size": 1,
        }
        config.model.denoiser = ConfigDict(network)
    return config


def resolve(config: ConfigDict) -> ConfigDict:
    """Leaves out the stage that is not used: a prior has a CLIP of its own."""
    with config.unlocked():
        for name in [name for name, source in config.stages.items() if not source]:
            del config.stages[name]
    return config


PRESETS = {
    "tiny": {
        "stages.prior": "dalle2_prior.py:tiny",
        "duration": "60_steps",
        "schedule.warmup": "20_steps",
        "ema.decay": (0.95,),
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.samples": 16,
        "log.every": "20_steps",
        "diffusion.context_width": 32,
        "diffusion.context_depth": 1,
        "diffusion.eval_timesteps": 4,
        "diffusion.steps": 5,
        "model.denoiser.channels": 16,
        "model.denoiser.multipliers": (1, 2),
    },
    "no_prior": {
        "stages.prior": "",
        "stages.clip": "clip.py:avatars",
        "diffusion.embedding": "clip",
    },
    # After Ramesh et al. 2022, appendix C.
    "paper": {
        "stages.prior": "dalle2_prior.py:paper",
        "dataset.image_size": 64,
        "dataset.text.tokenizer": "bpe",
        "dataset.text.vocabulary_size": 49152,
        "dataset.text.length": 77,
        "precision": "bfloat16",
        "batch_size": 2048,
        "duration": "800000_steps",
        "optimizer.learning_rate": 1.2e-4,
        "schedule.name": "constant",
        "ema.decay": (0.9999,),
        "evals.every": "20000_steps",
        "diffusion.path": "cosine",
        "diffusion.num_timesteps": 1000,
        "diffusion.prediction": "epsilon",
        "diffusion.times": "uniform",
        "diffusion.variance": "learned",
        "diffusion.sampler": "ddpm",
        "diffusion.steps": 250,
        "diffusion.context_width": 512,
        "diffusion.context_depth": 24,
        "diffusion.context_heads": 8,
        "model.denoiser.channels": 512,
        "model.denoiser.multipliers": (1, 2, 3, 4),
        "model.denoiser.blocks": 3,
        "model.denoiser.attention": (32, 16, 8),
        "model.denoiser.heads": 16,
        "model.denoiser.dropout": 0.1,
    },
}
