"""How well images fit the captions that they were drawn for, as a run of `methods.clip` sees it.

`clip_score` is the mean of 100 max(cos, 0) over the images and their own captions. That is
CLIPScore (Hessel et al. 2021, eq. 1) with its factor w = 100 instead of 2.5, as it is mostly
reported. `clip_r1` and so on are shares of the captions whose own image is among the 1, 5, 10 most
similar of a hundred, `clip_caption_r1` and so on of the images whose own caption is. `reference_`
marks the same of the real images of the captions: what perfect samples would reach. Scores by
different runs do not compare, nor recalls among other numbers of candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range
from genjax.data.catalogue import Dataset
from genjax.evals import contrastive, features
from genjax.evals.judges import Judge
from genjax.method import DataSpec
from genjax.methods.clip import CUTOFFS, recall
from genjax.modalities.text import strings

SCALE = 100.0  # of the score


class Options(NamedTuple):
    """The section `evals.clip`.

    Attributes:
      path: the folder of a run of method clip, trained on any captioned images.
      generated: number of samples judged.
      candidates: the images, or captions, among which one's own is searched.
    """

    path: str = ""
    generated: Annotated[int, Range(1, 2**20)] = 1000
    candidates: Annotated[int, Range(2, 2**14)] = 100


def groups(count: int, candidates: int) -> Iterator[tuple[slice, slice]]:
    """Cuts `count` pairs into groups of `candidates`: (the pairs of a group, those that count).

    If the last ones do not fill a group, others that counted before fill it up.
    """
    size = min(candidates, count)
    for start in range(0, count, size):
        first = min(start, count - size)
        yield slice(first, first + size), slice(start - first, size)


def scores(
    images: Float[np.ndarray, "N E"], texts: Float[np.ndarray, "N E"], candidates: int
) -> dict[str, float]:
    """`clip_score` and recalls of images and their own captions, by vectors of length 1.

    Args:
      images: of each pair.
      texts: of each pair.
      candidates: of a search; all pairs if there are fewer.
    """
    own = np.einsum("ie,ie->i", images, texts)
    found: dict[str, list[np.ndarray]] = {}
    for group, counted in groups(len(images), candidates):
        products = images[group] @ texts[group].T
        everyone = np.ones(len(products), bool)
        for name, rows in (("clip", products.T), ("clip_caption", products)):
            for k in CUTOFFS:
                right = np.asarray(recall(rows, everyone, k))[counted]
                found.setdefault(f"{name}_r{k}", []).append(right)
    shares = {name: float(np.concatenate(parts).mean()) for name, parts in found.items()}
    return {"clip_score": float(SCALE * np.maximum(own, 0).mean()), **shares}


def caption_of(spec: DataSpec) -> str:
    """The name of the field of the captions.

    Raises:
      ConfigError: the data have none, or several texts none of which is `text`.
    """
    names = [name for name, field in spec.fields.items() if field.kind == "text"]
    if "text" in names or len(names) == 1:
        return "text" if "text" in names else names[0]
    raise ConfigError(
        f"config.evals.judges: clip needs one caption for each image, a field 'text', and "
        f"{spec.name} has the fields {', '.join(spec.fields)}. Choose data with captions, such as "
        "avatars or emoji, or leave clip out."
    )


def build_judge(options: Options, evals: ConfigDict, dataset: Dataset, mesh: Mesh) -> Judge:
    """The judge of 8-bit images that were drawn for captions, in whatever form they were given.

    Raises:
      ConfigError: the data are not 8-bit images with captions, or `path` has no run of method clip.
    """
    contrastive.check_data("clip", dataset)
    caption, field = caption_of(dataset.spec), dataset.spec.fields[caption_of(dataset.spec)]
    key = "config.evals.clip.path"
    encoder = contrastive.Encoder(options.path, key, evals.batch_size, mesh)

    def judge(
        samples: np.ndarray, references: np.ndarray, conditions: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        check(samples, dataset)
        rows = conditions[caption]
        rows = rows[:, 0] if rows.ndim == 3 else rows  # of several captions the first
        texts = encoder.texts(strings(rows, field))
        found, real = (
            scores(encoder.images(images), texts, options.candidates)
            for images in (samples, references)
        )
        return {**found, **{f"reference_{name}": value for name, value in real.items()}}

    names = tuple(scores(np.eye(1), np.eye(1), 1))
    metrics = (*names, *(f"reference_{name}" for name in names))
    more = {"paired": True, "prepare": encoder.prepare, "fields": (caption,)}
    return Judge(judge, metrics, options.generated, **more)


def check(samples: np.ndarray, dataset: Dataset) -> None:
    """Checks that samples are images like the data's.

    Raises:
      ConfigError: their type or shape differs.
    """
    features.check_images(samples, dataset)
