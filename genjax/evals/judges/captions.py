"""Captions of pictures against all that their data have: BLEU, CIDEr-D, ROUGE, diversity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range
from genjax.data.catalogue import Dataset
from genjax.evals import cider, text
from genjax.evals.judges import Judge
from genjax.modalities.text import strings
from genjax.sampling import conditions


class Options(NamedTuple):
    """The section `evals.captions`.

    Attributes:
      generated: number of captions judged.
    """

    generated: Annotated[int, Range(2, 2**20)] = 500


def compare(captions: list[str], references: list[list[str]]) -> dict[str, float]:
    """`bleu` (0 to 100), `cider` (0 to 10), `rouge_l` (0 to 100) and `distinct_2` (0 to 1).

    CIDEr-D is 10 times that of its paper, as is usual; papers that report percent give 100 times
    more.
    """
    return {
        "bleu": text.bleu(captions, references),
        "cider": float(cider.cider(captions, references).mean()),
        "rouge_l": text.rouge(captions, references)["rouge_l"],
        "distinct_2": text.distinct([cider.words(caption) for caption in captions], 2),
    }


def build_judge(options: Options, evals: ConfigDict, dataset: Dataset, mesh: Mesh) -> Judge:
    """The judge of captions that were drawn for the pictures of `evals.split`.

    Raises:
      ConfigError: the generated field is no text.
    """
    field = dataset.spec.generated
    if field.kind != "text":
        raise ConfigError(
            f"config.evals.judges: captions judges texts, but {dataset.spec.target!r} of "
            f"{dataset.spec.name} is of kind {field.kind!r}."
        )
    held = {}

    def prepare() -> None:
        """Reads every wording of the examples that samples are drawn for."""
        rows = conditions.held_out(dataset.splits[evals.split], options.generated)
        wordings = rows[dataset.spec.target]
        wordings = wordings if wordings.ndim == 3 else wordings[:, None]
        held["first"] = wordings[:, 0]
        held["references"] = [list(dict.fromkeys(strings(w, field))) for w in wordings]

    def judge(
        samples: np.ndarray, references: np.ndarray, given: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        count = len(samples)
        if not np.array_equal(references, held["first"][:count]):
            raise ConfigError(
                f"--references: captions compares with all captions of the first {count} examples "
                f"of evals.split={evals.split!r}, and these are others. Give --references="
                f"{evals.split} and evals.captions.generated of at least the number of samples."
            )
        return compare(strings(samples, field), held["references"][:count])

    names = tuple(compare(["a b"] * 2, [["a b"]] * 2))
    return Judge(judge, names, options.generated, paired=True, prepare=prepare)
