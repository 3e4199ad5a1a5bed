"""Translation from English: the synopses and paragraphs of Debian's package descriptions.

Default: to Italian, an encoder and a decoder of 3 layers of width 192 each; 106,502 pairs for
training, with no source package in two splits. The data are Debian's package index, which apt-get
fetches: see docs/seq2seq.md for other machines.
  command    NPROC=1 launch/local.sh --config=configs/translate.py
             launch/local.sh --workdir=runs/translate --mode=sample --source="a tool" --beams=4
  hardware   one CPU core of two
  time       not measured yet
  score      not measured yet; beside BLEU of the model, evaluations give that of a dictionary that
             is learned from the pairs, word by word (dictionary_bleu)

Presets, as in --config=configs/translate.py:tiny:
  tiny       that of configs/summarise.py with the judges of this config: a test of the installation
             in about a minute
  german     to German, with 30,736 pairs; not measured yet
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

SUMMARISE = base.read_module(Path(__file__).with_name("summarise.py"))


def get_config() -> ConfigDict:
    """translation/it, for two CPU cores."""
    config = SUMMARISE.get_config()
    config.dataset.name = "translation/it"
    config.dataset.text.vocabulary_size = 6000
    config.dataset.text.source_length = 64
    config.dataset.text.length = 64
    config.evals.overlap.baseline = "dictionary"
    return config


PRESETS = {"tiny": SUMMARISE.TINY, "german": {"dataset.name": "translation/de"}}
