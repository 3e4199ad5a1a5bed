"""Stages without networks: vectors, a prior and a decoder that are closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from genjax.data import captions
from genjax.data.alphabets import Bytes
from genjax.method import DataSpec, Field, Method, Phase, Stage
from genjax.sampling.embeddings import unit

E, T, SIDE, N = 4, 8, 8, 3
KEY = jax.random.key(0)
TOKENIZER = Bytes({"eos": 256})
TEXT = captions.field(TOKENIZER, T)


def spec_of(side, **more):
    image = Field("image", (side, side, 3), np.dtype(np.uint8))
    return DataSpec("toy", {"image": image, "text": TEXT} | more, "image", {"train": 8})


def vectors(values):
    """A vector of length 1 that depends on every row's mean and first value."""
    flat = jnp.asarray(values).reshape(len(values), -1).astype(jnp.float32)
    parts = [flat.mean(1) + 1, flat[:, 0] - 3, flat[:, 1], jnp.full(len(flat), 20.0)]
    return unit(jnp.stack(parts, axis=1))


def embed(params, mutable, batch):
    assert params == {"weights": 7}  # only the stage's own networks
    return {name: vectors(batch[name]) for name in ("image", "text") if name in batch}


def method_of(sample, **more):
    def init(key, batch):
        return {"weights": 7}, {}

    phases = (Phase("x", lambda *_: None),)
    return Method(init, phases, lambda *_: {}, sample, (), **more)


def stage(name, kind, side=SIDE, sample=None, **more):
    made = method_of(sample or (lambda *_: None), apply=embed, **more)
    return Stage(name, ConfigDict({"method": kind}), spec_of(side), made, ("weights",))


def prior():
    def sample(params, mutable, key, num, condition):
        return -vectors(condition["text"])

    return stage("prior", "embedding_prior", sample=sample)


def decoder(side=SIDE // 2):
    def sample(params, mutable, key, num, condition):
        value = condition["text"][:, :1, None, None]
        return jnp.broadcast_to(value, (num, side, side, 3)).astype(jnp.uint8)

    return stage("decoder", "diffusion", side, sample, conditions={"text": TEXT})


CLIP = {"clip": stage("clip", "clip")}
PRIOR = {"prior": prior()}


def params(*names):
    return {name: {"weights": 7} for name in names}


def images(seed=0, side=SIDE, count=N):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def texts(*words):
    return np.stack([captions.padded(captions.encode(word, TEXT), TEXT) for word in words])
