"""How similar texts are in meaning to one correct text each, by all-MiniLM-L6-v2.

`minilm_cosine` is that of the embeddings of the two texts. `minilm_precision`, `minilm_recall` and
`minilm_f1` are BERTScore's (Zhang et al. 2020) on the last vectors of this model, without weights
and without rescaling: only compare them with one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range
from genjax.data.catalogue import Dataset
from genjax.evals import sentences
from genjax.evals.judges import Judge
from genjax.evals.sentences import Sentences
from genjax.modalities.text import strings

METRICS = tuple(f"minilm_{name}" for name in ("cosine", "precision", "recall", "f1"))


class Options(NamedTuple):
    """The section `evals.similarity`.

    Attributes:
      generated: number of texts judged.
    """

    generated: Annotated[int, Range(1, 2**20)] = 200


def compare(model: Sentences, texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The means of `METRICS` over pairs of a text and its reference."""
    rows = []
    for ours, theirs in zip(model.vectors(texts), model.vectors(references), strict=True):
        mean, other = ours.mean(0), theirs.mean(0)
        cosine = float(mean @ other / (np.linalg.norm(mean) * np.linalg.norm(other)))
        found = sentences.similarity(ours[1:-1], theirs[1:-1])  # without what bounds a text
        rows.append((cosine, found.precision, found.recall, found.f1))
    return dict(zip(METRICS, np.mean(rows, axis=0).tolist(), strict=True))


def build_judge(options: Options, evals: ConfigDict, dataset: Dataset, mesh: Mesh) -> Judge:
    """The judge of texts that were drawn for the conditions of the references.

    Raises:
      ConfigError: the data are not texts.
    """
    field = dataset.spec.generated
    if field.kind != "text":
        raise ConfigError(
            f"config.evals.judges: similarity judges texts, but {dataset.spec.target!r} of "
            f"{dataset.spec.name} is of kind {field.kind!r}."
        )

    def judge(samples: np.ndarray, references: np.ndarray, conditions: dict) -> dict[str, float]:
        pair = strings(samples, field), strings(references, field)
        return compare(sentences.minilm(), *pair)

    def prepare() -> None:
        sentences.minilm()

    return Judge(judge, METRICS, options.generated, paired=True, prepare=prepare)
