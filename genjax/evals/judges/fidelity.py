"""Fidelity of generated images to real ones: Fréchet and kernel distance, precision and recall.

All image families use this judge. The features are `config.evals.fidelity.features`. Metrics are
named after them, and only the Fréchet distance of Inception's features is called `fid`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range
from genjax.data import loader, packages, sources
from genjax.data.catalogue import Dataset
from genjax.data.digest import data_digest
from genjax.evals import distances, features, statistics
from genjax.evals.features import Features
from genjax.evals.judges import Judge
from genjax.evals.metric_names import METRICS, metric_name
from genjax.evals.statistics import Reference
from genjax.parallel.distributed import largest
from genjax.parallel.mesh import batch_part, fitting

logger = logging.getLogger("genjax")

KEPT = 10_000  # reference examples whose features are stored for KID, precision and recall
KID_SUBSET = 1000
NEIGHBOURS = 5  # k of precision, recall, density and coverage
LEAST = 2 * NEIGHBOURS + 1  # minimum number of images


class Options(NamedTuple):
    """The section `evals.fidelity`.

    Attributes:
      features: the extractors: "classifier", "efficientnet_lite0", "inception".
      generated: number of samples judged.
      reference: the split to compare with, or an .npz file of statistics.
      inception_path: the file of Inception's weights; if empty, they are downloaded.
    """

    features: tuple[str, ...] = ("classifier",)
    generated: Annotated[int, Range(LEAST, 2**20)] = 5000
    reference: str = "train"
    inception_path: str = ""


def metrics_of(features: Sequence[str]) -> tuple[str, ...]:
    """The names of all metrics on these features."""
    metrics = (*METRICS, "kid_se", "score_std")
    return tuple(metric_name(m, extractor) for extractor in features for m in metrics)


def build_judge(options: Options, evals: ConfigDict, dataset: Dataset, mesh: Mesh) -> Judge:
    """The judge of 8-bit images.

    Raises:
      ConfigError: as `Comparison`.
    """
    compare = Comparison(options, evals, dataset, mesh)

    def judge(samples: np.ndarray, references: np.ndarray, conditions: dict) -> dict[str, float]:
        return compare(samples)

    metrics = metrics_of(options.features)
    return Judge(judge, metrics, options.generated, prepare=compare.prepare)


def check(samples: np.ndarray, dataset: Dataset) -> None:
    """Checks that samples are images like the data's, and enough of them.

    Raises:
      ConfigError: their type or shape differs, or there are too few.
    """
    features.check_images(samples, dataset)
    if len(samples) < LEAST:
        raise ConfigError(
            f"{len(samples)} images to evaluate: expected at least {LEAST}, better thousands."
        )


class Comparison:
    """Judges images with the extractors of a config and the statistics of its data."""

    def __init__(self, options: Options, evals: ConfigDict, dataset: Dataset, mesh: Mesh):
        """Checks everything that needs no extractor; `prepare` loads the extractors.

        Raises:
          ConfigError: no extractor or an unknown one is named; the data are not images; the
            reference is neither a split nor a file.
        """
        field = dataset.spec.generated
        if not options.features:
            raise ConfigError(
                "config.evals.fidelity.features is empty: give classifier, efficientnet_lite0 or "
                "inception, or leave fidelity out of evals.judges."
            )
        if field.kind != "image":
            raise ConfigError(
                f"config.evals.judges: fidelity judges images, but {dataset.spec.target!r} of "
                f"{dataset.spec.name} is of kind {field.kind!r}. Leave it out."
            )
        if field.dtype != np.uint8:
            raise ConfigError(
                "config.evals.judges: fidelity judges 8-bit images: set dataset.dequantize=False, "
                "or leave it out."
            )
        for name in options.features:
            features.check(name, dataset)
        split = options.reference
        if split.endswith(".npz") and not Path(split).is_file():
            raise ConfigError(
                f"config.evals.fidelity.reference: there are no reference statistics at {split}. "
                "Compute them with --mode=statistics, or give a split of the data."
            )
        if not split.endswith(".npz") and not dataset.splits.get(split):
            raise ConfigError(
                f"config.evals.fidelity.reference={split!r}: expected a split of "
                f"{dataset.spec.name} ({', '.join(dataset.splits)}), or an .npz file "
                "written by --mode=statistics."
            )
        self.options, self.dataset, self.mesh = options, dataset, mesh
        self._size = evals.batch_size

    def prepare(self) -> None:
        """Loads the extractors, once; this may fetch weights or train the classifier.

        Raises:
          ConfigError: an extractor is not available, or the reference statistics are of another.
        """
        _ = self._extractors

    @functools.cached_property
    def _extractors(self) -> list[tuple[Features, Callable, Callable[[], Reference]]]:
        path = self.options.inception_path
        extractors = (
            features.build(n, self.dataset, inception_path=path) for n in self.options.features
        )
        return [
            (
                extractor,
                apply := features.jitted(extractor, self.mesh),
                self._find_reference(extractor, apply),
            )
            for extractor in extractors
        ]

    def __call__(self, images: UInt8[np.ndarray, "N H W C"]) -> dict[str, float]:
        """The metrics of a set of images; every process passes all images and gets the same result.

        `fd`, `kid` and `score` (the Inception Score's formula; none if the classifier predicts
        several labels), `precision`, `recall`, `density`, `coverage`, and `diversity`: the total
        variance of the features over that of the data, near 0 for samples that are all alike.

        Raises:
          ConfigError: too few images, or of another shape than the data's.
        """
        check(images, self.dataset)
        metrics = {}
        for extractor, apply, reference in self._extractors:
            generated, logits = features.of_images(apply, images, self._size, self.mesh)
            values = _compare(generated, logits, reference(), scored=len(extractor.labels) < 2)
            metrics |= {
                metric_name(metric, extractor.name): value for metric, value in values.items()
            }
        return metrics

    def references(self) -> list[tuple[str, Path, int]]:
        """(features, file, number of images) of the data's statistics, computed if missing."""
        return [
            (extractor.name, self._path(extractor), reference().count)
            for extractor, _, reference in self._extractors
        ]

    def _path(self, extractor: Features) -> Path:
        if self.options.reference.endswith(".npz"):
            return Path(self.options.reference)
        data = data_digest(self.dataset, self.options.reference)
        name = "-".join(
            [
                *(self.dataset.spec.name.replace("/", "_"), self.options.reference),
                *(extractor.name, data[:16], extractor.digest[:16]),
            ]
        )
        return packages.cache_root() / "statistics" / f"{name}.npz"

    def _find_reference(self, extractor: Features, apply: Callable) -> Callable[[], Reference]:
        """Returns a function that reads or computes the reference statistics at its first call."""
        split, path = self.options.reference, self._path(extractor)
        if split.endswith(".npz"):
            stored = statistics.load_reference(path, name=extractor.name, digest=None)
            if stored.digest.rpartition("/")[2] != extractor.digest:
                raise ConfigError(
                    f"the reference statistics {path} are of {extractor.name} with other weights "
                    "than here, so they cannot be compared. Compute them here with "
                    "--mode=statistics, or choose an extractor with published weights."
                )
            return lambda: stored
        cache: list[Reference] = []

        def reference() -> Reference:
            if not cache:
                cache.append(self._load_or_compute(extractor, apply, path, split))
            return cache[0]

        return reference

    def _load_or_compute(
        self, extractor: Features, apply: Callable, path: Path, split: str
    ) -> Reference:
        digest = f"{data_digest(self.dataset, split)}/{extractor.digest}"
        first = jax.process_index() == 0
        with packages.lock(f"statistics-{path.stem}") if first else contextlib.nullcontext():
            if not largest(int(not path.exists())):  # every process sees the file
                return statistics.load_reference(path, name=extractor.name, digest=digest)
            computed = self._compute(extractor, apply, split, digest)
            if first:
                statistics.save_reference(path, computed)
        return computed

    def _compute(self, extractor: Features, apply: Callable, split: str, digest: str) -> Reference:
        source = self.dataset.splits[split]
        logger.info(
            "computing %s features of the %d images of %s", extractor.name, len(source), split
        )
        total = statistics.start(extractor.dim)
        chosen = sources.order(len(source))[:KEPT].tolist()
        kept_rows, count = dict.fromkeys(chosen), 0  # in an order independent of the classes
        part, parts = batch_part(self.mesh)
        size = fitting(self._size, len(source), self.mesh)
        batches = loader.eval_batches(
            source, batch_size=size, process_index=part, process_count=parts
        )
        images = (batch[self.dataset.spec.target] for batch, _ in batches)
        for rows, _ in features.of_batches(apply, images, self.mesh):
            rows = rows[: len(source) - count]
            total = statistics.update(total, rows)
            kept_rows |= {count + i: row for i, row in enumerate(rows) if count + i in kept_rows}
            count += len(rows)
        mean, cov = statistics.finish(total)
        return Reference(
            extractor.name, digest, total.count, mean, cov, np.stack(list(kept_rows.values()))
        )


def _compare(
    generated: Float[np.ndarray, "N D"],
    logits: Float[np.ndarray, "N K"],
    reference: Reference,
    scored: bool,
) -> dict[str, float]:
    mean, cov = np.mean(generated, axis=0, dtype=np.float64), np.cov(generated, rowvar=False)
    values = {"fd": distances.frechet_distance(mean, cov, reference.mean, reference.cov)}
    values["diversity"] = float(np.trace(cov) / np.trace(reference.cov))
    if scored:  # the Inception Score is of one label
        values["score"], values["score_std"] = distances.inception_score(logits)
    if reference.features is not None:
        count = min(len(generated), len(reference.features))
        size = min(KID_SUBSET, count)
        values["kid"], values["kid_se"] = distances.kid(
            generated, reference.features, subset_size=size
        )
        values |= distances.prdc(reference.features[:count], generated[:count], NEIGHBOURS)
    return values
