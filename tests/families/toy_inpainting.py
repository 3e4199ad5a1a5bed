"""Image and mask in, image out: what a mask hides is filled with what training images have."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from genjax import config as base
from genjax.method import Aux, DataSpec, Field, Method, Phase
from genjax.nn.pixels import to_float, to_uint8
from genjax.sampling.conditions import required


def get_config() -> ConfigDict:
    config = base.base()
    config.method, config.dataset.name = "toy_inpainting", "npz"
    config.dataset.fields, config.dataset.test = (("mask", "mask"),), "25_percent"
    config.dataset.flip = True
    config.batch_size, config.duration = 8, "60_steps"
    config.optimizer.learning_rate, config.ema.decay = 0.1, ()
    config.evals.split, config.evals.samples, config.evals.batch_size = "test", 4, 8
    config.evals.every = "50_percent"
    return config


def build(config: ConfigDict, spec: DataSpec) -> Method:
    image, mask = spec.generated, spec.fields["mask"]

    def init(key, batch):
        return {"filler": {"mean": jnp.zeros(image.shape)}}, {"filler": {}}

    def hidden(params, batch):
        wrong = jnp.square(params["filler"]["mean"] - to_float(batch["image"]))
        return (wrong * batch["mask"]).sum((1, 2, 3)) / batch["mask"].sum((1, 2, 3))

    def loss(params, mutable, batch, key, step):
        return hidden(params, batch).mean(), Aux({}, {})

    def evaluate(params, mutable, batch, key):
        return {"hidden_mse": hidden(params, batch)}

    def sample(params, mutable, key, num, condition):
        given, where = required(condition, "image"), required(condition, "mask")
        filled = jnp.broadcast_to(params["filler"]["mean"], given.shape)
        return jnp.where(where > 0, to_uint8(filled), given)

    rules = ((r".*", PartitionSpec()),)
    conditions: dict[str, Field] = {"image": image, "mask": mask}
    phases = (Phase("filler", loss),)
    return Method(init, phases, evaluate, sample, rules, conditions=conditions)


def pictures(count: int) -> dict[str, np.ndarray]:
    """Squares whose left half is dark and whose right half is bright, mirrored as often as not."""
    rng = np.random.default_rng(0)
    image = np.full((count, 8, 8, 1), 40, np.uint8)
    image[:, :, 4:] = 40
    image[:, 2:6, 2:6] = 200
    mask = np.zeros((count, 8, 8, 1), np.uint8)
    top = rng.integers(0, 5, size=count)
    for row, at in zip(mask, top, strict=True):
        row[at : at + 4] = 1
    return {"image": image, "mask": mask}
