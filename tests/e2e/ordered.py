"""A family, and its config, whose metrics say which examples each step saw, and in which order."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from genjax import config as base
from genjax.method import Aux, Method, Phase
from genjax.nn.functional import functional
from genjax.nn.layers import Linear
from genjax.parallel.rules import fsdp


class Options(NamedTuple):
    pass


def get_config():
    config = base.base()
    config.method, config.dataset.name = "ordered", "digits"
    config.dataset.validation = config.dataset.test = "10_percent"
    config.batch_size, config.evals.batch_size, config.evals.limit = 8, 64, 64
    config.evals.samples = 0
    config.evals.every, config.log.every = "", "1_steps"
    config.duration = "3000_steps"
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.05
    config.schedule.name, config.schedule.warmup = "constant", ""
    config.checkpoint.minutes = 0.0
    with config.unlocked():
        config.ordered = ConfigDict(Options()._asdict())
    return config


class Scores(nnx.Module):
    def __init__(self, rngs):
        self.linear = Linear(64, 10, rngs=rngs)

    def __call__(self, image, key=None, train=False):
        return self.linear(image.reshape(len(image), 64) / 255)


def build(config, spec):
    network = functional(lambda rngs: Scores(rngs))

    def init(key, batch):
        params, mutable = network.init(key)
        return {"scores": params}, {"scores": mutable}

    def errors(params, batch):
        scores, _ = network.apply(params["scores"], {}, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"])

    def loss(params, mutable, batch, key, step):
        place = jnp.arange(1, len(batch["label"]) + 1)  # whole numbers: exact on any mesh
        pixels = batch["image"].astype(jnp.int32).sum((1, 2, 3))
        seen = {"labels": (place * batch["label"]).sum(), "pixels": (place * pixels).sum()}
        metrics = {name: value.astype(jnp.float32) for name, value in seen.items()}
        return errors(params, batch).mean(), Aux(metrics=metrics, mutable={})

    def evaluate(params, mutable, batch, key):
        return {"error": errors(params, batch)}

    def sample(params, mutable, key, num, condition):
        return jnp.zeros((num, 8, 8, 1), jnp.uint8)

    return Method(
        init=init,
        phases=(Phase("scores", loss),),
        evaluate=evaluate,
        sample=sample,
        rules=((r".*", fsdp),),
    )
