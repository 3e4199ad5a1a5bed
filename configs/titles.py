"""Titles: that of a Tang poem from its lines, character by character (Quan Tangshi).

Not news: no package carries articles together with their titles. There are 54,194 poems with
titles, of 3,226 authors, each of whom is in one split. Many titles name a person or an occasion
that the poem does not, so no model can find them.

Default: an encoder and a decoder of 3 layers of width 192 each.
  command    NPROC=1 launch/local.sh --config=configs/titles.py
             launch/local.sh --workdir=runs/titles --mode=sample --source="床前明月光，疑是地上霜。"
  hardware   one CPU core of two
  time       not measured yet
  score      not measured yet; chrF, because ROUGE and BLEU count words between spaces. Beside it
             evaluations give that of the poem's first line (lead_chrf)

Presets, as in --config=configs/titles.py:tiny:
  tiny       that of configs/summarise.py: a test of the installation in about a minute
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

SUMMARISE = base.read_module(Path(__file__).with_name("summarise.py"))


def get_config() -> ConfigDict:
    """tang_titles, for two CPU cores."""
    config = SUMMARISE.get_config()
    config.dataset.name = "tang_titles"
    config.dataset.text.tokenizer = "characters"
    config.dataset.text.vocabulary_size = 0
    config.dataset.text.source_length = 96
    config.dataset.text.length = 24
    return config


PRESETS = {"tiny": SUMMARISE.TINY}
