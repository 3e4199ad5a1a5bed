"""The mean image of each class; samples are those of the weights that guide."""

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from genjax import config as base
from genjax.method import Aux, Method, Phase
from genjax.modalities.image import image_shape
from genjax.modalities.label import label_condition, num_classes
from genjax.nn.pixels import to_float, to_uint8
from genjax.sampling.conditions import labels


def get_config():
    config = base.base()
    config.method, config.dataset.name = "guided_mean", "digits"
    config.dataset.validation, config.dataset.test = "10_percent", "10_percent"
    config.duration, config.optimizer.learning_rate = "100_steps", 0.1
    config.evals.every, config.evals.batch_size = "50_percent", 64
    config.evals.split = "validation"
    return config


def build(config, spec):
    shape = (num_classes(spec), *image_shape(spec, "mean"))

    def init(key, batch):
        return {"mean": {"image": jnp.zeros(shape)}}, {"mean": {}}

    def error(params, batch):
        wrong = params["mean"]["image"][batch["label"]] - to_float(batch["image"])
        return jnp.square(wrong).mean((1, 2, 3))

    def loss(params, mutable, batch, key, step):
        return error(params, batch).mean(), Aux(metrics={}, mutable={})

    def evaluate(params, mutable, batch, key):
        return {"mse": error(params, batch)}

    def sample(params, mutable, key, num, condition):
        label = labels(spec, True, num, condition, key)
        return to_uint8(params["guide/mean"]["image"][label])

    return Method(
        guided=True,
        init=init,
        phases=(Phase("mean", loss),),
        evaluate=evaluate,
        sample=sample,
        rules=((r".*", PartitionSpec()),),
        conditions=label_condition(spec, True),
    )
