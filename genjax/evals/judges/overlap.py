"""Agreement of texts with one correct text each: BLEU and chrF (sacrebleu's numbers)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range
from genjax.data.catalogue import Dataset
from genjax.evals import text
from genjax.evals.judges import Judge
from genjax.modalities.text import strings


class Options(NamedTuple):
    """The section `evals.overlap`.

    Attributes:
      generated: number of texts judged.
    """

    generated: Annotated[int, Range(1, 2**20)] = 200


def compare(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`bleu`, `chrf` and the diversity of texts that have one reference each.

    Raises:
      ConfigError: there is no text, or the number of references differs.
    """
    if not texts or len(texts) != len(references):
        raise ConfigError(
            f"{len(texts)} texts and {len(references)} references: expected one or more, and the "
            "same number of both."
        )
    return text.judge(texts, references)


def build_judge(options: Options, evals: ConfigDict, dataset: Dataset, mesh: Mesh) -> Judge:
    """The judge of texts that were drawn for the conditions of the references.

    Raises:
      ConfigError: the data are not texts.
    """
    field = dataset.spec.generated
    if field.kind != "text":
        raise ConfigError(
            f"config.evals.judges: overlap judges texts, but {dataset.spec.target!r} of "
            f"{dataset.spec.name} is of kind {field.kind!r}."
        )

    def judge(samples: np.ndarray, references: np.ndarray, conditions: dict) -> dict[str, float]:
        return compare(strings(samples, field), strings(references, field))

    return Judge(judge, tuple(text.judge(["a b"] * 2, ["a b"] * 2)), options.generated, paired=True)
