"""DALL-E 2's prior (Ramesh et al. 2022): CLIP's vector of an image, drawn for a caption.

Default: the faces of `avatars` and a CLIP on them, a causal transformer of 4 blocks of width 128.
  command    launch/local.sh --config=configs/dalle2_prior.py
             trains configs/clip.py:avatars first, in stages/clip under the workdir; to use an
             existing run: --config.stages.clip=runs/clip
  hardware   2 CPU cores
  time       22 minutes after the CLIP's 32, on one core of two (busy)
  score      the prediction of the mean vector has a cosine of 0.98 with the image's; the vector of
             the caption, which needs no prior, 0.73

Presets, as in --config=configs/dalle2_prior.py:tiny:
  tiny       very small models, a test of the installation
  paper      near the size and the recipe of the paper's diffusion prior, for accelerators and your
             own captioned pictures, of which you train a clip.py:vit_b32 first
             (--config.dataset.name=folder --config.dataset.path=DIR --config.stages.clip=RUN); not
             run by us
"""

from ml_collections import ConfigDict

from genjax import config as base
from genjax.methods.diffusion import Options
from genjax.methods.embedding_prior import Options as PriorOptions


def get_config() -> ConfigDict:
    """Captioned faces, for two CPU cores."""
    config = base.base()
    config.method = "embedding_prior"
    config.dataset.name = "avatars"
    config.dataset.image_size = (16,)
    config.dataset.text.tokenizer = "wordpiece"
    config.dataset.text.vocabulary_size = 512
    config.dataset.text.length = 48
    config.batch_size = 64
    config.duration = "2000_steps"
    config.precision = "auto"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.06
    config.schedule.name = "cosine"
    config.schedule.warmup = "200_steps"
    config.ema.decay = (0.999,)
    config.evals.limit = 256
    with config.unlocked():
        config.stages = ConfigDict({"clip": "clip.py:avatars"})
        config.embedding_prior = ConfigDict(PriorOptions()._asdict())
        config.diffusion = ConfigDict(
            Options(
                path="cosine",
                num_timesteps=1000,
                prediction="x0",
                conditions=("text",),
                label_dropout=0.1,
                eval_timesteps=8,
                sampler="ddim",
                steps=25,
                guidance=1.0,
            )._asdict()
        )
        network = {
            "length": 0,  # that of captions
            "width": 128,
            "depth": 4,
            "heads": 4,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "remat": "none",
        }
        config.model = ConfigDict({"network": "prior_transformer", "denoiser": network})
    return config


def resolve(config: ConfigDict) -> ConfigDict:
    """The network knows as many positions as captions have tokens."""
    config.model.denoiser.length = config.model.denoiser.length or config.dataset.text.length
    return config


PRESETS = {
    "tiny": {
        "stages.clip": "clip.py:avatars_tiny",
        "batch_size": 32,
        "duration": "60_steps",
        "schedule.warmup": "20_steps",
        "ema.decay": (0.95,),
        "evals.every": "50_percent",
        "evals.limit": 64,
        "evals.samples": 16,
        "log.every": "20_steps",
        "diffusion.context_width": 32,
        "diffusion.num_timesteps": 100,
        "diffusion.eval_timesteps": 4,
        "diffusion.steps": 8,
        "model.denoiser.width": 32,
        "model.denoiser.depth": 2,
        "model.denoiser.heads": 2,
    },
    # After Ramesh et al. 2022, appendix C. Their tokens come from a text encoder.
    "paper": {
        "stages.clip": "clip.py:vit_b32",
        "dataset.image_size": 224,
        "dataset.text.tokenizer": "bpe",
        "dataset.text.vocabulary_size": 49152,
        "dataset.text.length": 77,
        "precision": "bfloat16",
        "batch_size": 4096,
        "duration": "600000_steps",
        "optimizer.learning_rate": 1.1e-4,
        "optimizer.b2": 0.96,
        "optimizer.eps": 1e-6,
        "schedule.name": "constant",
        "ema.decay": (0.9999,),
        "evals.every": "20000_steps",
        "diffusion.context_width": 512,
        "diffusion.steps": 64,
        "model.denoiser.width": 2048,
        "model.denoiser.depth": 24,
        "model.denoiser.heads": 32,
        "model.denoiser.remat": "dots",
    },
}
