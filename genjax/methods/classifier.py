"""A classifier of labelled images, trained by cross-entropy.

If the data have no field `label` but several labels of other names, it predicts each of them, by a
head of its own on the same features. It generates nothing: its features and predictions are used to
evaluate generators of the same data (`genjax.evals.features`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import accumulate
from typing import NoReturn

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from genjax.config import ConfigError, construct
from genjax.method import Aux, Batch, DataSpec, Method, Phase, Tree
from genjax.modalities.image import image_shape
from genjax.modalities.label import label_fields, required_classes
from genjax.networks import cnn
from genjax.nn.functional import Functional, functional
from genjax.nn.pixels import to_float
from genjax.sampling.conditions import Condition


def network(config: ConfigDict, spec: DataSpec) -> Functional:
    """The network of `config.model`: images in [-1, 1] -> (features, logits of all `labels`).

    Raises:
      ConfigError: the data are not 8-bit images with labels.
    """
    shape = image_shape(spec, "classifier")
    classes = sum(labels(spec).values())
    return functional(
        lambda rngs: construct(
            cnn.Classifier,
            config.model,
            "model",
            shape=shape,
            num_classes=classes,
            dtype=jnp.dtype(config.precision),
            rngs=rngs,
        )
    )


def labels(spec: DataSpec) -> dict[str, int]:
    """The labels that a classifier of the data predicts, and the number of classes of each.

    Raises:
      ConfigError: the data have no labels.
    """
    fields = label_fields(spec)
    if not fields:
        required_classes(spec, "method='classifier'", True)
    return {name: field.facts["num_classes"] for name, field in fields.items()}


def by_label(logits: Float[Array, "B K"], heads: Mapping[str, int]) -> dict[str, Array]:
    """The logits of each label, which stand side by side in the order of `heads`."""
    ends = accumulate(heads.values())
    return {
        name: logits[:, end - classes : end]
        for (name, classes), end in zip(heads.items(), ends, strict=True)
    }


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The classifier of `config.model` for the `labels` of `spec`.

    Raises:
      ConfigError: the data are not 8-bit images with labels.
    """
    net, heads = network(config, spec), labels(spec)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = net.init(key)
        return {"classifier": params}, {"classifier": mutable}

    return Method(
        init=init,
        phases=(Phase("classifier", partial(loss, net, heads)),),
        evaluate=partial(evaluate, net, heads),
        sample=sample,
        rules=cnn.RULES,
    )


def loss(
    net: Functional,
    heads: Mapping[str, int],
    params: dict,
    mutable: dict,
    batch: Batch,
    key: Array,
    step: Array,
) -> tuple[Float[Array, ""], Aux]:
    """Mean over images of `nll` (see `scores`); the metric is the accuracy."""
    (_, logits), changed = net.apply(
        params["classifier"],
        mutable["classifier"],
        to_float(batch["image"]),
        key=key,
        train=True,
    )
    found = scores(logits, heads, batch)
    metrics = {"accuracy": found["accuracy"].mean()}
    return found["nll"].mean(), Aux(metrics, {"classifier": changed}, float(len(logits)))


def evaluate(
    net: Functional,
    heads: Mapping[str, int],
    params: dict,
    mutable: dict,
    batch: Batch,
    key: Array,
) -> dict[str, Float[Array, "B"]]:
    """The `scores` of each image."""
    (_, logits), _ = net.apply(
        params["classifier"], mutable["classifier"], to_float(batch["image"])
    )
    return scores(logits, heads, batch)


def scores(
    logits: Float[Array, "B K"], heads: Mapping[str, int], batch: Batch
) -> dict[str, Float[Array, "B"]]:
    """Per image, how well logits predict the labels.

    `nll` is -log p(labels) in nats: the sum of the labels' cross-entropies, as the heads do not see
    each other. `accuracy` is the share of labels whose most likely class is right; if there are
    several labels, `<label>_accuracy` is that of each.
    """
    parts = by_label(logits, heads)
    right = {
        f"{name}_accuracy": (part.argmax(-1) == batch[name]).astype(jnp.float32)
        for name, part in parts.items()
    }
    nll = sum(
        optax.softmax_cross_entropy_with_integer_labels(part, batch[name])
        for name, part in parts.items()
    )
    each = right if len(right) > 1 else {}
    return {"accuracy": sum(right.values()) / len(right), "nll": nll, **each}


def sample(params: dict, mutable: dict, key: jax.Array, num: int, condition: Condition) -> NoReturn:
    """Raises an error: a classifier draws no samples.

    Raises:
      ConfigError: always.
    """
    raise ConfigError(
        "a classifier does not sample: train it with evals.samples=0, or choose a generative "
        "method."
    )
