"""A language model of Python's standard library.

Default: the standard library of the running Python, without its tests; 4,096 byte-pair tokens.
  command    NPROC=1 launch/local.sh --config=configs/code.py
             launch/local.sh --workdir=runs/code --mode=sample --prompt="def read(self" --stream
  hardware   one CPU core of two
  time       24 minutes
  score      validation loss 3.460 nats a token, 1.355 bits a byte

Presets, as in --config=configs/code.py:tiny:
  tiny       a very small model of the bytes, a test of the installation in about a minute
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

GPT = base.read_module(Path(__file__).with_name("gpt.py"))


def get_config() -> ConfigDict:
    """The standard library, for two CPU cores."""
    config = GPT.get_config()
    config.dataset.name = "python"
    config.dataset.text.length = 256
    config.batch_size = 16
    config.duration = "1800_steps"
    return config


PRESETS = {"tiny": GPT.PRESETS["tiny"]}
