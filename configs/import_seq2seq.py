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
from genjax.interop import encoder_decoder, pretrained

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
    kinds = ", ".join(encoder_decoder.KINDS)
    files = "a config.json and safetensors files"
    weights = pretrained.required(config, f"a Hugging Face folder with {files}, of {kinds}")
    model = encoder_decoder.describe(weights)
    config.dataset.text.length = config.dataset.text.length or min(model.length, 512)
    options = model.options | {"tied": encoder_decoder.tied(weights)}
    sizes = dict.fromkeys(("length", "source_length"), model.length)
    sizes["vocabulary_size"] = model.vocabulary_size
    pretrained.fill(config, "seq2seq", options, model.tokenizer or "", sizes)
    if config.seq2seq.start < 0:
        config.seq2seq.start = model.start
    return config


PRESETS = {"tiny": {"evals.limit": 64}}
