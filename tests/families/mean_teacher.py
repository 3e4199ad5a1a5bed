"""Mean teacher (Tarvainen & Valpola 2017): a student that agrees with the average of itself."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.config import ConfigError
from genjax.method import Aux, Follow, Method, Phase
from genjax.modalities.label import num_classes
from genjax.parallel.rules import fsdp

DECAY, NOISE = 0.9, 0.3


def logits(params: dict, x: Float[Array, "B D"]) -> Float[Array, "B K"]:
    """Of a linear classifier."""
    return x @ params["kernel"] + params["bias"]


def pixels(batch) -> Float[Array, "B D"]:
    """Images in [0, 1], one row each."""
    return batch["image"].reshape(len(batch["image"]), -1) / 255.0


def teach(params: dict, mutable: dict, batch, key: Array, step):
    """The teacher's guess at a noisy picture, another one for the student, and the labels."""
    x = pixels(batch)
    noise = NOISE * jax.random.normal(key, (2, *x.shape))
    guess = jax.nn.softmax(logits(params["teacher"], x + noise[0]))
    return {"x": x + noise[1], "label": batch["label"], "guess": guess}


def loss(params: dict, mutable: dict, batch, key: Array, step):
    """Cross entropy, and the squared distance from the teacher's guess (their eq. 1)."""
    found = logits(params["student"], batch["x"])
    entropy = -jnp.take_along_axis(jax.nn.log_softmax(found), batch["label"][:, None], 1).mean()
    distance = jnp.square(jax.nn.softmax(found) - batch["guess"]).sum(1).mean()
    return entropy + distance, Aux({"distance": distance}, {})


def build(config, spec) -> Method:
    """A linear classifier of the images of `spec`, and its teacher."""
    classes = num_classes(spec)
    inputs = int(jnp.prod(jnp.array(spec.generated.shape)))

    def init(key, batch):
        kernel = 0.1 * jax.random.normal(key, (inputs, classes))
        return {"student": {"kernel": kernel, "bias": jnp.zeros(classes)}}, {}

    def evaluate(params, mutable, batch, key):
        guess = logits(params["teacher"], pixels(batch)).argmax(-1)
        return {"accuracy": (guess == batch["label"]).astype(jnp.float32)}

    def sample(params, mutable, key, num, condition=None):
        raise ConfigError("mean_teacher does not sample: set evals.samples=0.")

    return Method(
        init=init,
        phases=(Phase("student", loss),),
        evaluate=evaluate,
        sample=sample,
        rules=((".*", fsdp),),
        prepare=teach,
        follows={"teacher": Follow("student", DECAY)},
    )
