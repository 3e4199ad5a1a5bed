"""A classifier of labelled images, trained by cross-entropy.

It generates nothing: its features are used to evaluate generators of the same data
(`genjax.evals.features`).
"""

from __future__ import annotations

from functools import partial
from typing import NoReturn

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from genjax.config import ConfigError, construct
from genjax.method import Aux, Batch, DataSpec, Method, Phase, Tree
from genjax.modalities.image import image_shape
from genjax.modalities.label import required_classes
from genjax.networks import cnn
from genjax.nn.functional import Functional, functional
from genjax.nn.pixels import to_float
from genjax.sampling.conditions import Condition


def network(config: ConfigDict, spec: DataSpec) -> Functional:
    """The network of `config.model`: uint8 images as floats in [-1, 1] -> (features, logits).

    Raises:
      ConfigError: the data are not 8-bit images with labels.
    """
    shape = image_shape(spec, "classifier")
    classes = required_classes(spec, "method='classifier'", True)
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


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The classifier of `config.model` for the labels of `spec`.

    Raises:
      ConfigError: the data are not 8-bit images with labels.
    """
    net = network(config, spec)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = net.init(key)
        return {"classifier": params}, {"classifier": mutable}

    return Method(
        init=init,
        phases=(Phase("classifier", partial(loss, net)),),
        evaluate=partial(evaluate, net),
        sample=sample,
        rules=cnn.RULES,
    )


def loss(
    net: Functional, params: dict, mutable: dict, batch: Batch, key: Array, step: Array
) -> tuple[Float[Array, ""], Aux]:
    """Mean cross-entropy of the labels, in nats; the metric is the accuracy."""
    (_, logits), changed = net.apply(
        params["classifier"],
        mutable["classifier"],
        to_float(batch["image"]),
        key=key,
        train=True,
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    metrics = {"accuracy": _is_correct(logits, batch).mean()}
    return losses.mean(), Aux(metrics, {"classifier": changed}, float(len(losses)))


def evaluate(
    net: Functional, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"]]:
    """Per image: whether the most likely class is the label, and -log p(label) in nats."""
    (_, logits), _ = net.apply(
        params["classifier"], mutable["classifier"], to_float(batch["image"])
    )
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return {"accuracy": _is_correct(logits, batch), "nll": nll}


def _is_correct(logits: Float[Array, "B K"], batch: Batch) -> Float[Array, "B"]:
    return (logits.argmax(-1) == batch["label"]).astype(jnp.float32)


def sample(params: dict, mutable: dict, key: jax.Array, num: int, condition: Condition) -> NoReturn:
    """Raises an error: a classifier draws no samples.

    Raises:
      ConfigError: always.
    """
    raise ConfigError(
        "a classifier does not sample: train it with evals.samples=0, or choose a generative "
        "method."
    )
