"""Text to image: a frozen encoder of texts, a frozen autoencoder, and between them a tiny model.

The data are dark and bright squares with captions. The preset `text` is the encoder of texts: the
mean embedding of a caption's tokens, from which it tells dark from bright. The default is the
model: from that embedding, the codes of the autoencoder, each by itself. It is sampled by --prompt.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from genjax import config as base
from genjax.config import ConfigError
from genjax.data import captions
from genjax.data.catalogue import Dataset
from genjax.data.sources import Columns
from genjax.method import Aux, DataSpec, Field, Method, Phase
from genjax.sampling.conditions import required

LENGTH, WIDTH = 24, 8
RULES = ((r".*", PartitionSpec()),)


def get_config() -> ConfigDict:
    config = base.base()
    config.method = config.dataset.name = "toy_text_to_image"
    config.dataset.text.length = LENGTH
    config.dataset.codes = "autoencoder"
    config.batch_size, config.duration = 16, "80_steps"
    config.optimizer.learning_rate, config.ema.decay = 0.1, ()
    config.evals.split, config.evals.samples, config.evals.batch_size = "test", 4, 16
    config.evals.every = "50_percent"
    with config.unlocked():
        config.part = "image"
        config.stages = ConfigDict({"autoencoder": "", "text": "toy_text_to_image.py:text"})
    return config


PRESETS = {"text": {"part": "text", "dataset.codes": "", "evals.samples": 0}}


def resolve(config: ConfigDict) -> ConfigDict:
    if config.part == "text":
        with config.unlocked():
            config.stages = ConfigDict()
    return config


def load(dataset: ConfigDict) -> Dataset:
    rng = np.random.default_rng(0)
    splits, words = {}, ("dark", "bright")
    field = captions.field(captions.tokenizer(dataset, {}), dataset.text.length)
    for split, count in (("train", 128), ("test", 32)):
        label = rng.integers(2, size=count)
        shade = np.array([40, 215])[label] + rng.integers(-8, 9, size=count)
        image = np.broadcast_to(shade[:, None, None, None], (count, 8, 8, 1)).astype(np.uint8)
        text = captions.rows([f"a {words[i]} square" for i in label], field, "toy", split)
        splits[split] = Columns({"image": image, "text": text, "label": label.astype(np.int32)})
    fields = {
        "image": Field("image", (8, 8, 1), np.dtype(np.uint8)),
        "text": field,
        "label": Field("label", (), np.dtype(np.int32), {"num_classes": 2}),
    }
    sizes = {split: len(source) for split, source in splits.items()}
    return Dataset(DataSpec(dataset.name, fields, "image", sizes), splits, "made of nothing")


def build(config: ConfigDict, spec: DataSpec, stages) -> Method:
    return text_encoder(spec) if config.part == "text" else generator(spec, stages)


def text_encoder(spec: DataSpec) -> Method:
    """Its `apply` is the embedding; it has no codec."""
    values = spec.fields["text"].facts["vocabulary_size"]

    def init(key, batch):
        table = 0.1 * jax.random.normal(key, (values, WIDTH))
        return {"encoder": {"table": table, "head": jnp.zeros((WIDTH, 2))}}, {"encoder": {}}

    def embed(params, mutable, batch):
        return params["encoder"]["table"][batch["text"]].mean(-2)

    def nll(params, batch):
        logits = embed(params, {}, batch) @ params["encoder"]["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    def loss(params, mutable, batch, key, step):
        return nll(params, batch).mean(), Aux({}, {})

    def evaluate(params, mutable, batch, key):
        return {"nll": nll(params, batch)}

    def sample(params, mutable, key, num, condition):
        raise ConfigError("an encoder draws nothing")

    phases = (Phase("encoder", loss),)
    return Method(init, phases, evaluate, sample, RULES, apply=embed)


def generator(spec: DataSpec, stages) -> Method:
    code = spec.generated
    values, tokens = code.facts["vocabulary_size"], math.prod(code.shape)

    def init(key, batch):
        return {"model": {"kernel": jnp.zeros((WIDTH, tokens, values))}}, {"model": {}}

    def logits(params, mutable, text):
        embedding = stages["text"].apply(params, mutable, {"text": text})
        return jnp.einsum("bw,wsk->bsk", 10 * embedding, params["model"]["kernel"])

    def nll(params, mutable, batch):
        index = batch["code"].reshape(len(batch["code"]), -1)
        found = logits(params, mutable, batch["text"])
        return optax.softmax_cross_entropy_with_integer_labels(found, index).sum(-1)

    def loss(params, mutable, batch, key, step):
        return nll(params, mutable, batch).mean(), Aux({}, {})

    def evaluate(params, mutable, batch, key):
        return {"nll": nll(params, mutable, batch)}

    def sample(params, mutable, key, num, condition):
        found = logits(params, mutable, required(condition, "prompt"))
        return jax.random.categorical(key, found).reshape(num, *code.shape)

    text = spec.fields["text"]
    prompt = text._replace(facts={**text.facts, "field": "text"})
    phases = (Phase("model", loss),)
    return Method(init, phases, evaluate, sample, RULES, conditions={"prompt": prompt})
