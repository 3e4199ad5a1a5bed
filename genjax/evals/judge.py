"""Samples that are there already, judged without a run."""

from __future__ import annotations

import io

import jax
import numpy as np
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import catalogue, sources
from genjax.evals import text
from genjax.evals.comparison import Comparison, read_samples
from genjax.parallel.mesh import make_mesh
from genjax.sampling.prompts import read_text


def judge_images(config: ConfigDict, samples: str) -> dict[str, float]:
    """What images are worth beside the data of a config, and how many they are.

    Args:
      config: its data, devices and `evals` count.
      samples: an .npz file, or a split of the data.

    Raises:
      ConfigError: the data are no images, or the samples cannot be had.
    """
    dataset = catalogue.load(config.dataset)
    if dataset.spec.modality != "image":
        raise ConfigError(
            f"--samples judges images, and texts with --references; {dataset.spec.name} has no "
            "images."
        )
    if samples.endswith(".npz"):
        images = read_samples(samples, config.evals.generated)
    elif source := dataset.splits.get(samples):
        chosen = sources.order(len(source))[: config.evals.generated]
        images = np.stack([source[int(i)]["image"] for i in chosen])
    else:
        raise ConfigError(
            f"--samples={samples!r}: expected an .npz file, as --mode=sample writes it, or one of "
            f"the splits {', '.join(dataset.splits)}."
        )
    mesh = make_mesh(config)
    with jax.set_mesh(mesh):
        return {"images": len(images)} | Comparison(config, dataset, mesh)(images)


def judge_texts(samples: str, references: str) -> dict[str, float]:
    """What the texts of a file, a line each, are worth beside those of another; how many they are.

    Raises:
      ConfigError: a file cannot be read, or they have not as many lines.
    """
    texts, right = _lines("--samples", samples), _lines("--references", references)
    if not texts or len(texts) != len(right):
        raise ConfigError(
            f"--samples={samples} has {len(texts)} lines and --references={references} "
            f"{len(right)}: expected one or more, and the same number in both."
        )
    return {"texts": len(texts)} | text.judge(texts, right)


def _lines(flag: str, file: str) -> list[str]:
    """The lines of a file, which end where those of a terminal do: not with U+2028, say."""
    content = io.StringIO(read_text(flag, file), newline=None)
    return [line.removesuffix("\n") for line in content]
