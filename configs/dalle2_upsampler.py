"""DALL-E 2's upsampler (Ramesh et al. 2022): a large picture from a small one and its caption.

Default: the faces of `avatars` at 32 x 32, each pixel a square, from 16 x 16; the decoder draws the
small picture when only a caption is given. So one command runs the whole chain:
  launch/local.sh --mode=sample --workdir=runs/dalle2 --prompt="a person with long red hair"
  command    launch/local.sh --config=configs/dalle2_upsampler.py --workdir=runs/dalle2
             trains decoder, prior and CLIP first, in stages/decoder under the workdir; to use an
             existing run: --config.stages.decoder=runs/dalle2_decoder
  hardware   2 CPU cores
  time       20 minutes on one core of two (busy), after 130 for the others
  score      95.1 % of the attributes that captions name are right, by the whole chain; a texture of
             noise is visible, so give it more examples; docs/images/dalle2_upsampler_prompts.png

Presets, as in --config=configs/dalle2_upsampler.py:tiny:
  tiny       very small models, all four of them: a test of the installation; the samples are noise
  paper      near the size of the paper's upsampler from 64 x 64 to 256 x 256, for accelerators and
             your own captioned pictures, of which you train a dalle2_decoder.py:paper first; not
             run by us
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

DECODER = base.read_module(Path(__file__).with_name("dalle2_decoder.py"))


def get_config() -> ConfigDict:
    """Captioned faces, for two CPU cores."""
    config = DECODER.get_config()
    config.dataset.image_size = (32,)
    config.duration = "80000_examples"
    config.diffusion.embedding = ""
    config.diffusion.embedding_dropout = 0.0
    config.diffusion.low_resolution = 16
    config.diffusion.low_resolution_stage = "decoder"
    config.diffusion.guidance = 1.0
    config.diffusion.label_dropout = 0.0  # guidance would lead away from the small picture too
    with config.unlocked():
        config.stages = ConfigDict({"decoder": "dalle2_decoder.py"})
    config.model.denoiser.channels = 32
    config.model.denoiser.multipliers = (1, 2)
    config.model.denoiser.attention = ()
    config.model.denoiser.patch_size = 2
    return config


_DECODER_TINY = {k: v for k, v in DECODER.PRESETS["tiny"].items() if not k.startswith("stages.")}
PRESETS = {
    "tiny": _DECODER_TINY | {"stages.decoder": "dalle2_decoder.py:tiny"},
    # After Ramesh et al. 2022, appendix C. Theirs trains on crops and is not told the caption.
    "paper": {
        "stages.decoder": "dalle2_decoder.py:paper",
        "dataset.image_size": 256,
        "dataset.text.tokenizer": "bpe",
        "dataset.text.vocabulary_size": 49152,
        "dataset.text.length": 77,
        "precision": "bfloat16",
        "batch_size": 1024,
        "duration": "1000000_steps",
        "optimizer.learning_rate": 1.2e-4,
        "schedule.name": "constant",
        "ema.decay": (0.9999,),
        "evals.every": "20000_steps",
        "diffusion.low_resolution": 64,
        "diffusion.path": "cosine",
        "diffusion.num_timesteps": 1000,
        "diffusion.prediction": "epsilon",
        "diffusion.times": "uniform",
        "diffusion.sampler": "ddim",
        "diffusion.steps": 27,
        "model.denoiser.channels": 320,
        "model.denoiser.multipliers": (1, 2, 3, 4),
        "model.denoiser.blocks": 3,
        "model.denoiser.heads": 16,
        "model.denoiser.dropout": 0.1,
        "model.denoiser.patch_size": 1,
    },
}
