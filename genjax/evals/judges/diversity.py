"""Diversity of texts: distinct n-grams, repetition, self-BLEU."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range
from genjax.data import sources
from genjax.data.catalogue import Dataset
from genjax.evals import text
from genjax.evals.judges import Judge
from genjax.modalities.text import strings

READ = 32  # human texts, which decide whether the script has spaces


class Options(NamedTuple):
    """The section `evals.diversity`.

    Attributes:
      generated: number of texts judged; 0 for those that are shown.
    """

    generated: Annotated[int, Range(0, 2**20)] = 0


def build_judge(options: Options, evals: ConfigDict, dataset: Dataset, mesh: Mesh) -> Judge:
    """The judge. It counts words, or characters if the script has no spaces.

    Raises:
      ConfigError: the data are not texts.
    """
    spec = dataset.spec
    if spec.generated.kind != "text":
        raise ConfigError(
            f"config.evals.judges: diversity judges texts, but {spec.target!r} of {spec.name} is "
            f"of kind {spec.generated.kind!r}."
        )
    source = next(dataset.splits[s] for s in (evals.split, "train") if dataset.splits.get(s))
    examples = sources.take(source, np.arange(min(len(source), READ)))[spec.target]
    spaced = text.has_spaces(strings(examples, spec.generated))

    def judge(samples: np.ndarray, references: np.ndarray, conditions: dict) -> dict[str, float]:
        return text.diversity(text.units(strings(samples, spec.generated), spaced))

    return Judge(judge, tuple(text.diversity([["a"], ["b"]])), options.generated)
