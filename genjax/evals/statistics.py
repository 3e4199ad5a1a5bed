"""Running mean and covariance of features, and files of reference statistics."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from genjax.config import ConfigError
from genjax.data import npz
from genjax.files import write_atomic


class Statistics(NamedTuple):
    """Statistics of the features of the examples so far.

    Attributes:
      count: number of examples.
      mean: of the features.
      m2: the sum over the examples of (x - mean)(x - mean)^T.
    """

    count: int
    mean: Float[np.ndarray, "D"]
    m2: Float[np.ndarray, "D D"]


def start(dim: int) -> Statistics:
    """The statistics of zero examples with `dim` features each."""
    return Statistics(0, np.zeros(dim), np.zeros((dim, dim)))


def update(stats: Statistics, features: Float[np.ndarray, "B D"]) -> Statistics:
    """`stats` with a batch added; how examples are split into batches makes no difference.

    Args:
      stats: the statistics so far.
      features: of the batch, in any precision; the sums are float64.

    Raises:
      ValueError: a wrong number of features, or features that are not finite.
    """
    features = np.asarray(features)
    dim = len(stats.mean)
    if features.ndim != 2 or features.shape[1] != dim:
        raise ValueError(f"a batch of features has shape {list(features.shape)}, not [B, {dim}].")
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise ValueError(
            f"features in the batch after the first {stats.count} examples are not finite. Look at "
            "the images, or at the extractor."
        )
    if not len(features):
        return stats
    mean = features.mean(axis=0)
    centred = features - mean
    return merge(stats, Statistics(len(features), mean, centred.T @ centred))


def merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of both sets of examples (Chan, Golub & LeVeque 1979, updating formula).

    Raises:
      ValueError: they have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics of {len(a.mean)} and of {len(b.mean)} features do not merge.")
    count = a.count + b.count
    if not count:
        return a
    gap = b.mean - a.mean
    share = b.count / count
    return Statistics(
        count, a.mean + gap * share, a.m2 + b.m2 + np.outer(gap, gap) * (a.count * share)
    )


def finish(stats: Statistics) -> tuple[Float[np.ndarray, "D"], Float[np.ndarray, "D D"]]:
    """The mean and the unbiased covariance (over count - 1), as in `numpy.cov`.

    Raises:
      ValueError: fewer than two examples.
    """
    if stats.count < 2:
        raise ValueError(f"{stats.count} examples have no covariance: expected at least 2.")
    return stats.mean, stats.m2 / (stats.count - 1)


class Reference(NamedTuple):
    """Statistics of a data set's features, with which samples are compared.

    Attributes:
      name: of the features (`Features.name`).
      digest: of the data and of how its images were made.
      count: number of examples in the mean and the covariance.
      mean: of the features.
      cov: their unbiased covariance.
      features: of some of the examples, for KID, precision and recall; or None.
    """

    name: str
    digest: str
    count: int
    mean: Float[np.ndarray, "D"]
    cov: Float[np.ndarray, "D D"]
    features: Float[np.ndarray, "N D"] | None = None


def save_reference(path: str | os.PathLike, reference: Reference) -> None:
    """Writes reference statistics as an .npz file, whole or not at all.

    The file has `mean`, `cov` (float64), `count`, `features_name`, `data_digest` and, if they are
    not None, `features` in their own type.

    Raises:
      OSError: the disk is full or the folder cannot be written; an old file is untouched.
    """
    arrays = {
        "mean": np.asarray(reference.mean, np.float64),
        "cov": np.asarray(reference.cov, np.float64),
        "count": np.array(reference.count, np.int64),
        "features_name": np.array(reference.name),
        "data_digest": np.array(reference.digest),
    }
    if reference.features is not None:
        arrays["features"] = np.asarray(reference.features)
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomic(path, content.getvalue())


def load_reference(path: str | os.PathLike, *, name: str, digest: str | None) -> Reference:
    """Reads reference statistics and checks that they are the expected ones.

    Args:
      path: a file written by `save_reference`.
      name: the features that it must have.
      digest: the data digest that it must have; None accepts any, for a file that the user chose.

    Raises:
      ConfigError: the file is missing or damaged, or has other features or data.
    """
    path = Path(path)
    remedy = "Delete it to have it rebuilt, or give another file."
    if not path.is_file():
        raise ConfigError(f"there are no reference statistics at {path}.")
    try:
        arrays = dict(npz.Arrays(path))
        reference = Reference(
            name=str(arrays["features_name"]),
            digest=str(arrays["data_digest"]),
            count=int(arrays["count"]),
            mean=arrays["mean"],
            cov=arrays["cov"],
            features=arrays.get("features"),
        )
        _check_shapes(reference)
    except KeyError as error:
        raise ConfigError(f"reference statistics {path}: no entry {error}. {remedy}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"reference statistics {path} cannot be read: {error}. {remedy}"
        ) from error
    for key, actual, expected in (
        ("features", reference.name, name),
        ("data digest", reference.digest, reference.digest if digest is None else digest),
    ):
        if actual != expected:
            raise ConfigError(
                f"reference statistics {path} have {key} {actual!r}: expected {expected!r}. "
                f"{remedy}"
            )
    return reference


def _check_shapes(reference: Reference) -> None:
    """Raises ValueError if the arrays do not fit together."""
    mean, cov, features = reference.mean, reference.cov, reference.features
    dim = mean.shape[0] if mean.ndim == 1 else 0
    rows = [] if features is None else [features]
    if not dim or cov.shape != (dim, dim) or any(f.ndim != 2 or f.shape[1] != dim for f in rows):
        shapes = [list(a.shape) for a in (mean, cov, *rows)]
        raise ValueError(f"its mean, covariance (and features) have shapes {shapes}")
    if not all(np.issubdtype(a.dtype, np.floating) for a in (mean, cov, *rows)):
        raise ValueError("its arrays are not floating point")
    if reference.count < 2 or not all(np.isfinite(a).all() for a in (mean, cov, *rows)):
        raise ValueError(f"its values are not finite, or of {reference.count} examples")
