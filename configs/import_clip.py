"""Imports a CLIP of Hugging Face or open_clip as a run of genjax.

Default: the weights become a run of zero steps, which judges samples and is a stage of other runs.
The data, emoji, are those of the evaluation only: retrieval among 100 pairs that the model never
saw.
  command    launch/local.sh --config=configs/import_clip.py --config.weights=DIR --workdir=runs/a
             launch/local.sh --workdir=runs/a --mode=eval
  hardware   2 CPU cores
  time       not measured yet
  score      vectors, logits and losses equal to those of transformers and open_clip to 1e-4, on
             small models

To train further, give data, a duration, and a workdir of its own, because the run of zero steps is
finished:
  launch/local.sh --config=configs/import_clip.py --config.weights=DIR --workdir=runs/further \\
    --config.dataset.name=folder --config.dataset.path=... --config.duration=1000_steps

Presets, as in --config=configs/import_clip.py:tiny:
  tiny       the same, with fewer held-out pairs, for small models
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base
from genjax.interop import clip, pretrained

CLIP = base.read_module(Path(__file__).with_name("clip.py"))


def get_config() -> ConfigDict:
    """A CLIP; `resolve` fills in the networks' options."""
    config = CLIP.get_config()
    config.dataset.image_size = ()
    config.dataset.crop_padding = 0
    config.dataset.text.tokenizer = ""
    config.dataset.text.vocabulary_size = 0
    config.dataset.text.length = 0
    config.duration = "0_steps"
    config.optimizer.learning_rate = 1e-5
    config.schedule.name, config.schedule.warmup = "constant", ""
    config.ema.decay = ()
    config.checkpoint.best = ""
    with config.unlocked():
        config.weights = ""  # the folder
        config.clip.features = 0  # those of the weights
        config.clip.loss = ""
        same = {"dropout": 0.0, "attention_dropout": 0.0, "remat": "none"}
        config.model = ConfigDict({"network": "vit", "vit": same, "text": dict(same)})
    return config


def resolve(config: ConfigDict) -> ConfigDict:
    """Takes networks, sizes and tokenizer from the weights, unless they are given.

    Raises:
      ConfigError: no weights are given, or they cannot be read.
    """
    files = "config.json or open_clip_config.json, a tokenizer.json and safetensors files"
    weights = pretrained.required(config, f"a folder of Hugging Face or open_clip with a {files}")
    model = clip.describe(pretrained.located(weights))
    config.dataset.image_size = config.dataset.image_size or model.size
    config.dataset.text.length = config.dataset.text.length or model.length
    config.clip.features = config.clip.features or model.features
    config.clip.loss = config.clip.loss or model.loss
    pretrained.fill(config, "vit", model.image, model.tokenizer, {})
    pretrained.fill(config, "text", model.text, model.tokenizer, {})
    return config


PRESETS = {"tiny": {"batch_size": 32, "evals.limit": 100}}
