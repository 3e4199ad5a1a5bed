"""Fidelity of generated texts to real ones: a Fréchet distance of all-MiniLM-L6-v2's embeddings.

`fd_minilm` is the squared distance of two Gaussians (Heusel et al. 2017, eq. 6) fitted to the
embeddings, which have length one: it is from 0 to 4. It falls as the number of texts grows, so only
compare equal numbers. `diversity_minilm` is the total variance of the embeddings over that of the
data: near 0 for texts that are all alike.
"""

from __future__ import annotations

import functools
from typing import Annotated, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range
from genjax.data import sources
from genjax.data.catalogue import Dataset
from genjax.evals import distances, sentences
from genjax.evals.judges import Judge
from genjax.evals.metric_names import metric_name
from genjax.modalities.text import strings

FD, DIVERSITY = (metric_name(metric, sentences.NAME) for metric in ("fd", "diversity"))
LEAST = 2  # texts with a variance


class Options(NamedTuple):
    """The section `evals.text_fidelity`.

    Attributes:
      generated: number of texts judged.
      references: number of texts of the data that they are compared with.
      reference: the split that these are from.
    """

    generated: Annotated[int, Range(LEAST, 2**20)] = 1000
    references: Annotated[int, Range(LEAST, 2**20)] = 1000
    reference: str = "train"


def compare(ours: Float[np.ndarray, "N D"], theirs: Float[np.ndarray, "M D"]) -> dict[str, float]:
    """Fréchet distance and relative diversity of embeddings.

    Raises:
      ConfigError: there are fewer than two texts.
    """
    if min(len(ours), len(theirs)) < LEAST:
        raise ConfigError(f"{len(ours)} and {len(theirs)} texts: expected at least {LEAST} each.")
    (mean, cov), (other_mean, other_cov) = (
        (rows.mean(0, dtype=np.float64), np.cov(rows, rowvar=False)) for rows in (ours, theirs)
    )
    distance = distances.frechet_distance(mean, cov, other_mean, other_cov)
    return {FD: distance, DIVERSITY: float(np.trace(cov) / np.trace(other_cov))}


def build_judge(options: Options, evals: ConfigDict, dataset: Dataset, mesh: Mesh) -> Judge:
    """The judge of texts, whatever they were drawn for.

    Raises:
      ConfigError: the data are not texts, or have no such split.
    """
    spec, source = dataset.spec, dataset.splits.get(options.reference)
    if spec.generated.kind != "text":
        raise ConfigError(
            f"config.evals.judges: text_fidelity judges texts, but {spec.target!r} of {spec.name} "
            f"is of kind {spec.generated.kind!r}."
        )
    if not source:
        raise ConfigError(
            f"config.evals.text_fidelity.reference={options.reference!r}: expected a split of "
            f"{spec.name} ({', '.join(dataset.splits)})."
        )

    @functools.cache
    def reference() -> Float[np.ndarray, "M D"]:
        chosen = sources.order(len(source))[: options.references]
        texts = strings(sources.take(source, chosen)[spec.target], spec.generated)
        return sentences.minilm().embed(texts)

    def judge(samples: np.ndarray, references: np.ndarray, conditions: dict) -> dict[str, float]:
        return compare(sentences.minilm().embed(strings(samples, spec.generated)), reference())

    def prepare() -> None:
        reference()

    return Judge(judge, (FD, DIVERSITY), options.generated, prepare=prepare)
