"""Tang poems, character by character (Quan Tangshi).

Default: 6 layers of width 128, poems of up to 127 characters, each poem a separate text.
  command    NPROC=1 launch/local.sh --config=configs/poetry.py
             launch/local.sh --workdir=runs/poetry --mode=sample --prompt="床前明月光"
  hardware   one CPU core of two
  time       26 minutes
  score      validation loss 4.794 nats a character, 2.43 bits a byte

Presets, as in --config=configs/poetry.py:tiny:
  tiny       a very small model of Python's standard library, byte by byte: a test of the
             installation in about a minute
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

CHAR = base.read_module(Path(__file__).with_name("gpt_char.py"))


def get_config() -> ConfigDict:
    """tang_poems, for two CPU cores."""
    config = CHAR.get_config()
    config.dataset.name = "tang_poems"
    config.dataset.validation = "5_percent"
    config.dataset.text.documents = "packed"
    config.duration = "1300_steps"
    config.evals.samples = 8
    return config


PRESETS = {"tiny": CHAR.PRESETS["tiny"] | {"dataset.text.documents": "packed"}}
