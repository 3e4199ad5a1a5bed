"""Whether samples have the labels of the examples for whose conditions they were drawn.

A sample drawn for a caption of a held-out example should have this example's attributes, which are
the labels of the data. A classifier of the data (`genjax.methods.classifier`) reads them off the
sample. It is trained once, on train, with `features="classifier"` of the judge `fidelity`.

Every label of every sample counts, so the conditions must determine all labels. Evaluations take an
example's first caption; that of `avatars` names every attribute, and what it does not mention is
absent ("none"). If captions leave labels open, even a perfect model falls short of the reference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int, UInt8
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range
from genjax.data.catalogue import Dataset
from genjax.evals import features
from genjax.evals.judges import Judge
from genjax.methods.classifier import by_label
from genjax.modalities.label import label_fields


class Options(NamedTuple):
    """The section `evals.attributes`.

    Attributes:
      generated: number of samples judged.
    """

    generated: Annotated[int, Range(1, 2**20)] = 1000


def metrics_of(right: Mapping[str, Bool[np.ndarray, " N"]]) -> dict[str, float]:
    """The metrics of N samples of which each label is right or wrong.

    `attribute_accuracy` is the share of all labels of all samples that are right, `_se` its
    standard error, `<label>_accuracy` the share of samples whose label is right, `all_attributes`
    that of samples without a wrong label.
    """
    table = np.stack(list(right.values()), 1)
    shares = table.mean(1)
    return {
        "attribute_accuracy": float(shares.mean()),
        "attribute_accuracy_se": float(shares.std() / len(shares) ** 0.5),
        "all_attributes": float(table.all(1).mean()),
        **{f"{name}_accuracy": float(rows.mean()) for name, rows in right.items()},
    }


def build_judge(options: Options, evals: ConfigDict, dataset: Dataset, mesh: Mesh) -> Judge:
    """The judge of 8-bit images whose held-out examples have labels.

    It gives `metrics_of` the samples and, of the held-out examples themselves, by the same
    classifier, `reference_attribute_accuracy` and `reference_all_attributes`: what perfect samples
    would reach.

    Raises:
      ConfigError: the data are not 8-bit images with labels.
    """
    spec, field = dataset.spec, dataset.spec.generated
    if field.kind != "image" or field.dtype != np.uint8:
        raise ConfigError(
            f"config.evals.judges: attributes judges 8-bit images, but {spec.target!r} of "
            f"{spec.name} is of kind {field.kind!r} and type {np.dtype(field.dtype)}. Set "
            "dataset.dequantize=False if they are images, or leave attributes out."
        )
    labels = tuple(label_fields(spec))
    if not labels:
        raise ConfigError(
            f"config.evals.judges: attributes needs data with labels, and {spec.name} has none. "
            "Choose a data set with labels, such as avatars, or leave attributes out."
        )

    @functools.cache
    def extractor() -> tuple[features.Features, Callable]:
        built = features.build("classifier", dataset)
        return built, features.jitted(built, mesh)

    def predicted(images: UInt8[np.ndarray, "N H W C"]) -> dict[str, Int[np.ndarray, " N"]]:
        built, apply = extractor()
        _, logits = features.of_images(apply, images, evals.batch_size, mesh)
        return {name: part.argmax(-1) for name, part in by_label(logits, built.labels).items()}

    def judge(
        samples: np.ndarray, references: np.ndarray, conditions: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        check(samples, dataset)
        found, real = (
            metrics_of({name: rows == conditions[name] for name, rows in predicted(images).items()})
            for images in (samples, references)
        )
        kept = ("attribute_accuracy", "all_attributes")
        return {**found, **{f"reference_{name}": real[name] for name in kept}}

    def prepare() -> None:
        extractor()

    metrics = (
        *metrics_of(dict.fromkeys(labels, np.ones(1, bool))),
        "reference_attribute_accuracy",
        "reference_all_attributes",
    )
    return Judge(judge, metrics, options.generated, paired=True, prepare=prepare, fields=labels)


def check(samples: np.ndarray, dataset: Dataset) -> None:
    """Checks that samples are images like the data's.

    Raises:
      ConfigError: their type or shape differs.
    """
    features.check_images(samples, dataset)
