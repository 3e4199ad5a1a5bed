"""Imports a T5, mT5, BART or Marian model from a Hugging Face folder as a run of genjax.

Default: the weights become a run of zero steps, to sample from, export or train further.
  command    launch/local.sh --config=configs/import_seq2seq.py --config.weights=DIR \\
               --workdir=runs/mine
             launch/local.sh --workdir=runs/mine --mode=sample --source="..." --beams=4
             launch/local.sh --workdir=runs/mine --mode=export
  hardware   one CPU core
  time       not measured on a published model
  score      logits equal to those of transformers to 1e-4

The folder needs a tokenizer.json. To train further, give pairs, a duration, and a workdir of its
own, because the run of zero steps is finished:
  launch/local.sh --config=configs/import_seq2seq.py --config.weights=DIR --workdir=runs/further \\
    --config.dataset.name=pairs --config.dataset.path=pairs.jsonl --config.duration=1000_steps

Presets, as in --config=configs/import_seq2seq.py:tiny:
  tiny       the same, for small models
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base
from genjax.config import ConfigError
from genjax.interop import encoder_decoder

SUMMARISE = base.read_module(Path(__file__).with_name("summarise.py"))


def get_config() -> ConfigDict:
    """A model of pairs; `resolve` fills in the network's options."""
    config = SUMMARISE.get_config()
    config.dataset.name = "tokenizer"
    config.dataset.text.tokenizer = ""
    config.dataset.text.vocabulary_size = 0
    config.dataset.text.source_length = config.dataset.text.length = 0
    config.batch_size = config.evals.batch_size = 8
    config.precision = "float32"
    config.duration = "0_steps"
    config.optimizer.learning_rate = 1e-4
    config.schedule.name, config.schedule.warmup = "constant", ""
    config.evals.judges = ()
    with config.unlocked():
        config.weights = ""
        training = {"dropout": 0.0, "attention_dropout": 0.0, "remat": "none"}
        config.model.seq2seq = ConfigDict(training)
        config.seq2seq.label_smoothing = 0.0
    return config


def resolve(config: ConfigDict) -> ConfigDict:
    """Takes network, length, tokenizer and first token from the weights, unless they are given.

    Raises:
      ConfigError: no weights are given, or they cannot be read.
    """
    if not config.weights:
        raise ConfigError(
            "config.weights is empty: give --config.weights=DIR, a Hugging Face folder with a "
            f"config.json and safetensors files, of {', '.join(encoder_decoder.KINDS)}."
        )
    model = encoder_decoder.describe(config.weights)
    text = config.dataset.text
    text.length = text.length or min(model.length, 512)
    text.tokenizer = text.tokenizer or model.tokenizer or ""
    if not text.tokenizer:
        raise ConfigError(
            f"config.weights={config.weights!r} has no tokenizer.json: give one as "
            "--config.dataset.text.tokenizer=FILE (transformers' save_pretrained of a fast "
            "tokenizer writes it)."
        )
    tied = {"tied": encoder_decoder.tied(config.weights)}
    with config.unlocked():
        options = model.options | tied | config.model.seq2seq.to_dict()
        config.model.seq2seq = ConfigDict(options)
        for name in ("length", "source_length"):
            config.model[name] = config.model[name] or model.length
        config.model.vocabulary_size = config.model.vocabulary_size or model.vocabulary_size
    if config.seq2seq.start < 0:
        config.seq2seq.start = model.start
    return config


PRESETS = {"tiny": {"evals.limit": 64}}
