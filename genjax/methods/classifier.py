"""A classifier of labelled images, trained by cross-entropy.

It generates nothing: it is there for its features, by which generators of the same data are judged
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
    """Mean cross-entropy of the labels, in nats; the metric is the share that is right."""
    (_, logits), changed = net.apply(
        params["classifier"],
        mutable["classifier"],
        to_float(batch["image"]),
        key=key,
        train=True,
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    metrics = {"accuracy": _right(logits, batch).mean()}
    return losses.mean(), Aux(metrics, {"classifier": changed}, float(len(losses)))


def evaluate(
    net: Functional, params: dict, mutable: dict, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"]]:
    """Of each image: whether the likeliest class is its label, and -log p(label) in nats."""
    (_, logits), _ = net.apply(
        params["classifier"], mutable["classifier"], to_float(batch["image"])
    )
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return {"accuracy": _right(logits, batch), "nll": nll}


def _right(logits: Float[Array, "B K"], batch: Batch) -> Float[Array, "B"]:
    return (logits.argmax(-1) == batch["label"]).astype(jnp.float32)


def sample(params: dict, mutable: dict, key: jax.Array, num: int, condition: Condition) -> NoReturn:
    """Refuses: there is nothing that a classifier could draw.

    Raises:
      ConfigError: always.
    """
    raise ConfigError(
        "a classifier does not sample: train it with evals.samples=0, or choose a generative "
        "method."
    )
