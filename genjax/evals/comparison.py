"""How generated images compare with real ones: Fréchet and kernel distance, precision and recall.

What every image family is judged by. The features are `config.evals.features`; metrics are named
after them, and `fid` is that on Inception alone.
"""

from __future__ import annotations

import contextlib
import logging
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import loader, packages, sources
from genjax.data.catalogue import Dataset
from genjax.evals import distances, features, statistics
from genjax.evals.features import Features
from genjax.evals.metric_names import METRICS, metric_name
from genjax.evals.statistics import Reference
from genjax.parallel.distributed import largest
from genjax.parallel.mesh import batch_part, global_batch

logger = logging.getLogger("genjax")

KEPT = 10_000  # reference examples whose features are kept, for KID, precision and recall
KID_SUBSET = 1000
NEIGHBOURS = 5  # k of precision, recall, density and coverage


def metrics_of(config: ConfigDict) -> list[str]:
    """The names of the metrics that `config.evals.features` asks for, without `eval/`."""
    metrics = (*METRICS, "kid_se", "score_std")
    return [metric_name(m, extractor) for extractor in config.evals.features for m in metrics]


class Comparison:
    """The extractors of a config and the statistics of its data, ready to judge images."""

    def __init__(self, config: ConfigDict, dataset: Dataset, mesh: jax.sharding.Mesh):
        """Makes the extractors ready, which may fetch weights or train the classifier.

        Raises:
          ConfigError: no extractor is asked for, or it cannot be had; the data are no images; the
            reference is neither a split nor statistics of the right features.
        """
        if not config.evals.features:
            raise ConfigError(
                "config.evals.features is empty: give --config.evals.features=classifier, "
                "efficientnet_lite0 or inception."
            )
        if dataset.spec.modality != "image":
            raise ConfigError(
                f"config.evals.features={config.evals.features!r} need images; "
                f"{dataset.spec.name} holds {dataset.spec.modality}. Set it to ()."
            )
        if dataset.spec.features["image"].dtype != np.uint8:
            raise ConfigError(
                "config.evals.features judge 8-bit images: set dataset.dequantize=False, or "
                "evals.features to ()."
            )
        self.evals, self.dataset, self.mesh = config.evals, dataset, mesh
        self._size = config.evals.batch_size
        self._extractors = [
            (extractor, apply := _jitted(extractor, mesh), self._find_reference(extractor, apply))
            for extractor in (
                features.build(name, dataset, inception_path=config.evals.inception_path)
                for name in config.evals.features
            )
        ]

    def __call__(self, images: UInt8[np.ndarray, "N H W C"]) -> dict[str, float]:
        """The metrics of a set of images, the same on every process, which all hold all of them.

        `fd`, `kid` and `score` (the Inception Score's formula), `precision`, `recall`, `density`,
        `coverage`, and `diversity`: the total variance of the features over that of the data,
        near 0 for samples that are all alike.

        Raises:
          ConfigError: too few images, or of another shape than the data's.
        """
        shape = self.dataset.spec.features["image"].shape
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise ConfigError(
                f"the images to evaluate are {images.dtype}{list(images.shape)}: expected "
                f"uint8[N, {', '.join(map(str, shape))}], as {self.dataset.spec.name} has."
            )
        if len(images) <= 2 * NEIGHBOURS:
            raise ConfigError(
                f"{len(images)} images to evaluate: expected more than {2 * NEIGHBOURS}, better "
                "thousands. Raise evals.generated."
            )
        found = {}
        for extractor, apply, reference in self._extractors:
            part, parts = batch_part(self.mesh)
            mine = (np.split(rows, parts)[part] for rows in _padded(images, self._size))
            rows = zip(*self._run(apply, mine), strict=True)
            made, logits = (np.concatenate(r)[: len(images)] for r in rows)
            values = _compare(made, logits, reference())
            found |= {
                metric_name(metric, extractor.name): value for metric, value in values.items()
            }
        return found

    def references(self) -> list[tuple[str, Path, int]]:
        """(features, file, number of images) of the statistics of the data, made where missing."""
        return [
            (extractor.name, self._path(extractor), reference().count)
            for extractor, _, reference in self._extractors
        ]

    def _run(self, apply: Callable, mine: Iterable[np.ndarray]):
        """Features and logits of each batch of which `mine` are this process's rows."""
        for rows in mine:
            yield jax.device_get(apply(global_batch({"image": rows}, self.mesh)["image"]))

    def _path(self, extractor: Features) -> Path:
        if self.evals.reference.endswith(".npz"):
            return Path(self.evals.reference)
        data = features.data_digest(self.dataset, self.evals.reference)
        name = "-".join(
            [
                *(self.dataset.spec.name.replace("/", "_"), self.evals.reference),
                *(extractor.name, data[:16], extractor.digest[:16]),
            ]
        )
        return packages.cache_root() / "statistics" / f"{name}.npz"

    def _find_reference(self, extractor: Features, apply: Callable) -> Callable[[], Reference]:
        """The reference statistics: read, or computed, at the first call."""
        split = self.evals.reference
        if not split.endswith(".npz") and not self.dataset.splits.get(split):
            raise ConfigError(
                f"config.evals.reference={split!r}: expected a split of {self.dataset.spec.name} "
                f"({', '.join(self.dataset.splits)}), or an .npz file of --mode=statistics."
            )
        path = self._path(extractor)
        if split.endswith(".npz"):
            found = statistics.load_reference(path, name=extractor.name, digest=None)
            if found.digest.rpartition("/")[2] != extractor.digest:
                raise ConfigError(
                    f"the reference statistics {path} are of {extractor.name} with other weights "
                    "than those at hand: features do not compare. Make them here, by "
                    "--mode=statistics, or choose an extractor with published weights."
                )
            return lambda: found
        held: list[Reference] = []

        def reference() -> Reference:
            if not held:
                held.append(self._load_or_compute(extractor, apply, path, split))
            return held[0]

        return reference

    def _load_or_compute(
        self, extractor: Features, apply: Callable, path: Path, split: str
    ) -> Reference:
        digest = f"{features.data_digest(self.dataset, split)}/{extractor.digest}"
        first = jax.process_index() == 0
        with packages.lock(f"statistics-{path.stem}") if first else contextlib.nullcontext():
            if not largest(int(not path.exists())):  # every process has it
                return statistics.load_reference(path, name=extractor.name, digest=digest)
            found = self._compute(extractor, apply, split, digest)
            if first:
                statistics.save_reference(path, found)
        return found

    def _compute(self, extractor: Features, apply: Callable, split: str, digest: str) -> Reference:
        source = self.dataset.splits[split]
        logger.info("%s features of the %d images of %s", extractor.name, len(source), split)
        total = statistics.start(extractor.dim)
        chosen = sources.order(len(source))[:KEPT].tolist()
        kept, seen = dict.fromkeys(chosen), 0  # in an order that knows no classes
        part, parts = batch_part(self.mesh)
        batches = loader.eval_batches(
            source, batch_size=self._size, process_index=part, process_count=parts
        )
        for rows, _ in self._run(apply, (batch["image"] for batch, _ in batches)):
            rows = rows[: len(source) - seen]
            total = statistics.update(total, rows)
            kept |= {seen + i: row for i, row in enumerate(rows) if seen + i in kept}
            seen += len(rows)
        mean, cov = statistics.finish(total)
        return Reference(
            extractor.name, digest, total.count, mean, cov, np.stack(list(kept.values()))
        )


def read_samples(path: str, limit: int) -> UInt8[np.ndarray, "N H W C"]:
    """Images in an .npz file: its array `samples`, as --mode=sample writes it, or its only one.

    If there are more than `limit`, a fixed choice spread over all of them: they may be sorted.

    Raises:
      ConfigError: no such file, or no such array in it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = ["samples"] if "samples" in file.files else file.files
            if len(names) != 1:
                raise ConfigError(
                    f"--samples={path} holds the arrays {', '.join(names) or 'none'}: expected "
                    "one, or one that is called samples."
                )
            images = file[names[0]]
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--samples={path} cannot be read as an .npz file: {error}.") from error
    if len(images) > limit:
        images = images[np.sort(sources.order(len(images))[:limit])]
    return images[..., None] if images.ndim == 3 else images


def _jitted(extractor: Features, mesh: jax.sharding.Mesh) -> Callable:
    """images, split over the mesh -> (features, logits), whole on every device."""
    apply = jax.jit(extractor.apply, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return lambda images: apply(extractor.params, images)


def _padded(images: np.ndarray, size: int) -> Iterable[np.ndarray]:
    """The images in batches of `size`, the last filled up with zeros."""
    for start in range(0, len(images), size):
        rows = images[start : start + size]
        yield np.pad(rows, ((0, size - len(rows)), *((0, 0),) * (images.ndim - 1)))


def _compare(
    made: Float[np.ndarray, "N D"], logits: Float[np.ndarray, "N K"], reference: Reference
) -> dict[str, float]:
    mean, cov = np.mean(made, axis=0, dtype=np.float64), np.cov(made, rowvar=False)
    values = {"fd": distances.frechet_distance(mean, cov, reference.mean, reference.cov)}
    values["diversity"] = float(np.trace(cov) / np.trace(reference.cov))
    values["score"], values["score_std"] = distances.inception_score(logits)
    if reference.features is not None:
        count = min(len(made), len(reference.features))
        size = min(KID_SUBSET, count)
        values["kid"], values["kid_se"] = distances.kid(made, reference.features, subset_size=size)
        values |= distances.prdc(reference.features[:count], made[:count], NEIGHBOURS)
    return values
