"""Imports a BERT, RoBERTa, DistilBERT or ELECTRA from a Hugging Face folder as a run of genjax.

Default: the weights become a run of zero steps, to fill gaps with, export or train further.
  command    launch/local.sh --config=configs/import_bert.py --config.weights=DIR --workdir=runs/a
             launch/local.sh --workdir=runs/a --mode=sample --prompt="the [MASK] of France"
             launch/local.sh --workdir=runs/a --mode=export
  hardware   one CPU core
  time       not measured yet
  score      vectors and logits equal to those of transformers to 1e-4

To train further, give data, a duration, and a workdir of its own, because the run of zero steps is
finished:
  launch/local.sh --config=configs/import_bert.py --config.weights=DIR --workdir=runs/further \\
    --config.dataset.name=text --config.dataset.path=... --config.dataset.text.length=127 \\
    --config.dataset.text.documents=padded --config.duration=1000_steps

Presets, as in --config=configs/import_bert.py:tiny:
  tiny       the same, for small models
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base
from genjax.interop import bert, pretrained

BERT = base.read_module(Path(__file__).with_name("bert.py"))


def get_config() -> ConfigDict:
    """An encoder; `resolve` fills in the network's options."""
    config = BERT.get_config()
    config.dataset.name = "tokenizer"
    config.dataset.text.tokenizer = ""
    config.dataset.text.vocabulary_size = 0
    config.dataset.text.length = 0
    config.batch_size = 8
    config.evals.batch_size = 8
    config.duration = "0_steps"
    config.optimizer.learning_rate = 2e-5
    config.schedule.name, config.schedule.warmup = "constant", ""
    with config.unlocked():
        config.weights = ""  # the folder
        config.model.encoder = ConfigDict(
            {"dropout": 0.0, "attention_dropout": 0.0, "remat": "none"}
        )
    return config


def resolve(config: ConfigDict) -> ConfigDict:
    """Takes network, length and tokenizer from the weights, unless they are given.

    Raises:
      ConfigError: no weights are given, or they cannot be read.
    """
    files = "a config.json, a tokenizer.json and safetensors files"
    weights = pretrained.required(config, f"a Hugging Face folder with {files}")
    model = bert.describe(pretrained.located(weights))
    config.dataset.text.length = config.dataset.text.length or model.length - 1
    sizes = {"length": model.length, "vocabulary_size": model.vocabulary_size}
    pretrained.fill(config, "encoder", model.options, model.tokenizer or "", sizes)
    return config


PRESETS = {"tiny": {"evals.samples": 2, "evals.limit": 64}}
