"""Agreement of texts with one correct text each: BLEU, chrF (sacrebleu's numbers), ROUGE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range, one_of
from genjax.data import sources
from genjax.data.catalogue import Dataset
from genjax.evals import baselines, text
from genjax.evals.judges import Judge
from genjax.modalities.text import strings


class Options(NamedTuple):
    """The section `evals.overlap`.

    Attributes:
      generated: number of texts judged.
      baseline: one of `baselines.BASELINES`, whose texts are judged too, as metrics `lead_bleu` or
        `dictionary_bleu` and so on; "" for none.
      learned_from: the most training pairs that a baseline learns from.
    """

    generated: Annotated[int, Range(1, 2**20)] = 200
    baseline: str = ""
    learned_from: Annotated[int, Range(1, 2**30)] = 100_000


def compare(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`bleu`, `chrf`, ROUGE and the diversity of texts that have one reference each.

    Raises:
      ConfigError: there is no text, or the number of references differs.
    """
    if not texts or len(texts) != len(references):
        raise ConfigError(
            f"{len(texts)} texts and {len(references)} references: expected one or more, and the "
            "same number of both."
        )
    return text.judge(texts, references)


def source_of(dataset: Dataset) -> str:
    """The name of the text that the target is generated from.

    Raises:
      ConfigError: the examples are not pairs of texts.
    """
    spec = dataset.spec
    names = [name for name, f in spec.fields.items() if f.kind == "text" and name != spec.target]
    if len(names) != 1:
        raise ConfigError(
            f"config.evals.overlap.baseline needs pairs of texts; besides {spec.target!r}, "
            f"{spec.name} has the texts {', '.join(names) or 'none'}. Set it to ''."
        )
    return names[0]


def build_judge(options: Options, evals: ConfigDict, dataset: Dataset, mesh: Mesh) -> Judge:
    """The judge of texts that were drawn for the conditions of the references.

    Raises:
      ConfigError: the data are not texts, or a baseline is asked for and they are not pairs.
    """
    spec, baseline = dataset.spec, options.baseline
    field = spec.generated
    if field.kind != "text":
        raise ConfigError(
            f"config.evals.judges: overlap judges texts, but {spec.target!r} of "
            f"{spec.name} is of kind {field.kind!r}."
        )
    metrics = list(text.judge(["a b"] * 2, ["a b"] * 2))
    source, learned = "", {}
    if baseline:
        one_of("config.evals.overlap.baseline", baseline, tuple(baselines.BASELINES))
        source = source_of(dataset)
        metrics += [f"{baseline}_{name}" for name in text.agreement(["a"], ["a"])]

    def prepare() -> None:
        if baseline:
            train = dataset.splits["train"]
            chosen = sources.order(len(train))[: options.learned_from]
            rows = sources.take(train, np.sort(chosen))
            pairs = (strings(rows[name], spec.fields[name]) for name in (source, spec.target))
            learned["baseline"] = baselines.BASELINES[baseline](*pairs)

    def judge(
        samples: np.ndarray, references: np.ndarray, conditions: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        correct = strings(references, field)
        values = compare(strings(samples, field), correct)
        if baseline and source in conditions:
            write: Callable[[str], str] = learned["baseline"]
            given = strings(conditions[source], spec.fields[source])
            found = text.agreement([write(one) for one in given], correct)
            values |= {f"{baseline}_{name}": value for name, value in found.items()}
        return values

    return Judge(judge, tuple(metrics), options.generated, paired=True, prepare=prepare)
