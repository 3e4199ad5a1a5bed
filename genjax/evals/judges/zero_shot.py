"""Whether images have the labels that they were drawn for, as a run of `methods.clip` reads them.

A label's classes become texts, such as "a photo of a dog.", and an image has the class whose texts
are the most similar (Radford et al. 2021, section 3.1). Nothing is trained on the labels. With real
images as samples this is zero-shot classification:

    --mode=eval --samples=test --references=test
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range, one_of
from genjax.data.catalogue import Dataset
from genjax.evals import contrastive, features
from genjax.evals.judges import Judge
from genjax.method import Field
from genjax.methods.clip import classify, zero_shot
from genjax.modalities.label import label_fields

ACCURACY = "zero_shot_accuracy"


class Options(NamedTuple):
    """The section `evals.zero_shot`.

    Attributes:
      path: the folder of a run of method clip.
      labels: the fields of the data that are read; () for all labels.
      templates: of the texts about a class; {class} is its name, {label} that of the field. The
        vectors of several are averaged.
      generated: number of samples judged.
    """

    path: str = ""
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {class}.",)
    generated: Annotated[int, Range(1, 2**20)] = 1000


def texts_of(label: str, classes: tuple[str, ...], templates: tuple[str, ...]) -> list[list[str]]:
    """The texts about each class; `_` in names becomes a space.

    Raises:
      ConfigError: there is no template, or one does not name the class or has another name in
        braces.
    """
    key = "config.evals.zero_shot.templates"
    if not templates:
        raise ConfigError(f'{key} is empty: expected texts such as "a photo of a {{class}}."')
    for template in templates:
        try:
            fits = (
                "{class}" in template and template.format(**{"class": "", "label": ""}) is not None
            )
        except (KeyError, IndexError, ValueError, AttributeError):
            fits = False
        if not fits:
            raise ConfigError(
                f"{key}: {template!r}: expected a text with {{class}} in it, and no other braces "
                'than {label}, such as "a photo of a {class}."'
            )
    plain = label.replace("_", " ")
    return [
        [t.format(**{"class": str(name).replace("_", " "), "label": plain}) for t in templates]
        for name in classes
    ]


def _chosen(options: Options, dataset: Dataset) -> dict[str, Field]:
    """The labels that are read.

    Raises:
      ConfigError: the data have no such label, or its classes have no names.
    """
    spec = dataset.spec
    known = {name: field for name, field in spec.fields.items() if field.kind == "label"}
    names = options.labels or tuple(label_fields(spec))
    if not names:
        raise ConfigError(
            f"config.evals.judges: zero_shot needs data with labels, and {spec.name} has none. "
            "Choose a data set with labels, such as avatars, or leave zero_shot out."
        )
    for name in names:
        one_of("config.evals.zero_shot.labels", name, tuple(known))
        if not known[name].facts.get("classes"):
            raise ConfigError(
                f"config.evals.zero_shot: the classes of {name!r} of {spec.name} have numbers, but "
                "no names to compare images with. Choose another label."
            )
    return {name: known[name] for name in names}


def build_judge(options: Options, evals: ConfigDict, dataset: Dataset, mesh: Mesh) -> Judge:
    """The judge of 8-bit images whose held-out examples have labels with names.

    `zero_shot_accuracy` is the share of labels read right, over all samples and labels;
    `zero_shot_<label>_accuracy` that of each label, if there are several;
    `reference_zero_shot_accuracy` is that of the held-out examples themselves.

    Raises:
      ConfigError: the data are not such images, a template is wrong, or `path` has no run of method
        clip.
    """
    contrastive.check_data("zero_shot", dataset)
    labels = _chosen(options, dataset)
    texts = {
        name: texts_of(name, tuple(field.facts["classes"]), options.templates)
        for name, field in labels.items()
    }
    key = "config.evals.zero_shot.path"
    encoder = contrastive.Encoder(options.path, key, evals.batch_size, mesh)

    def classes() -> dict[str, np.ndarray]:
        """The vectors of the classes of each label."""
        M, made = len(options.templates), {}
        for name, of_class in texts.items():
            vectors = encoder.texts([text for several in of_class for text in several])
            made[name] = zero_shot(vectors.reshape(-1, M, vectors.shape[-1]))
        return made

    def read(
        images: UInt8[np.ndarray, "N H W C"], known: Mapping[str, np.ndarray]
    ) -> dict[str, Int[np.ndarray, " N"]]:
        vectors = encoder.images(images)
        return {name: np.asarray(classify(vectors, x)) for name, x in known.items()}

    def judge(
        samples: np.ndarray, references: np.ndarray, conditions: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        check(samples, dataset)
        known = classes()
        drawn, real = (
            {name: float(np.mean(x == conditions[name])) for name, x in read(rows, known).items()}
            for rows in (samples, references)
        )
        values = {ACCURACY: float(np.mean(list(drawn.values())))}
        values[f"reference_{ACCURACY}"] = float(np.mean(list(real.values())))
        several = len(drawn) > 1
        return values | {f"zero_shot_{n}_accuracy": v for n, v in drawn.items() if several}

    each = tuple(f"zero_shot_{name}_accuracy" for name in labels) if len(labels) > 1 else ()
    metrics = (ACCURACY, f"reference_{ACCURACY}", *each)
    more = {"paired": True, "prepare": encoder.prepare, "fields": tuple(labels)}
    return Judge(judge, metrics, options.generated, **more)


def check(samples: np.ndarray, dataset: Dataset) -> None:
    """Checks that samples are images like the data's.

    Raises:
      ConfigError: their type or shape differs.
    """
    features.check_images(samples, dataset)
