"""A world in which every answer can be counted: V = 4 tokens, answers of T = 3, two prompts.

A policy is a table of logits for each prompt and each beginning of an answer, so that it can be any
distribution over the 64 answers.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from genjax import config as configs
from genjax.data.alphabets import Characters
from genjax.method import DataSpec, Field
from genjax.methods import lm
from genjax.nn.functional import Functional

V, T, PROMPTS = 4, 3, 2
NODES = sum(V**t for t in range(T))  # beginnings of an answer
ANSWERS = np.array(list(itertools.product(range(V), repeat=T)))
REWARD = np.cos(1.0 + 2.0 * np.arange(V**T)[None] + 0.7 * np.arange(PROMPTS)[:, None])


def network(outputs=V, nodes=NODES):
    """The table as a sequence network; the first token of a segment is the prompt."""

    def apply(params, mutable, x, *, segment=None, cache=None, capacity=0, key=None, train=False):
        segment = jnp.ones_like(x) if segment is None else segment
        if cache is not None:
            segment = jnp.broadcast_to(cache[2], x.T.shape).T

        def step(carry, given):
            prompt, node, before = carry
            token, here = given
            begins = here != before
            prompt = jnp.where(begins, token, prompt)
            node = jnp.where(begins, 0, V * node + 1 + token)
            logits = jnp.asarray(params["table"])[prompt, jnp.minimum(node, nodes - 1)]
            return (prompt, node, here), logits

        nothing = jnp.zeros(len(x), jnp.int32)
        start = (nothing, nothing, nothing - 1) if cache is None else tuple(cache)
        carry, logits = jax.lax.scan(step, start, (x.T, segment.T))
        return (logits.swapaxes(0, 1), jnp.stack(carry)), mutable

    def init(key):
        return {"table": jnp.zeros((V, nodes, outputs))}, {}

    return Functional(init, apply)


def table(seed, size=1.0):
    """The parameters of a random policy."""
    logits = size * jax.random.normal(jax.random.key(seed), (V, NODES, V))
    return {"table": np.asarray(logits)}


def log_p(params):
    """log p of every answer to every prompt [C, X]."""
    nodes = np.zeros(len(ANSWERS), int)
    total = 0.0
    for t in range(T):
        total += jax.nn.log_softmax(params["table"])[:PROMPTS, nodes, ANSWERS[:, t]]
        nodes = V * nodes + 1 + ANSWERS[:, t]
    return total


def number(answer):
    """The place of an answer in `ANSWERS`."""
    return answer @ jnp.asarray(V ** np.arange(T)[::-1])


def reward(params, mutable, tokens, batch):
    """The reward of prompts of one token with their answers."""
    return jnp.asarray(REWARD, jnp.float32)[tokens[:, -T - 1], number(tokens[:, -T:])]


def objective(params, reference, beta):
    """J of each prompt."""
    p, r = log_p(params), log_p(reference)
    return (jnp.exp(p) * (REWARD - beta * (p - r))).sum(1)


def optimum(reference, beta):
    """(log p*, J*): p* ~ reference exp(r / beta), J* = beta log E_reference exp(r / beta)."""
    weighed = log_p(reference) + REWARD / beta
    best = jax.nn.logsumexp(weighed, axis=1, keepdims=True)
    return weighed - best, beta * best[:, 0]


def spec(length=T):
    """Rows of a prompt of one token, and an answer."""
    facts = {"vocabulary_size": V, "special": {"start": 0}, "tokenizer": Characters("abcd", {})}
    fields = {
        name: Field(kind, (length + 1,), np.dtype(dtype), facts if name == "token" else {})
        for name, kind, dtype in (
            ("token", "text", np.int32),
            ("segment", "mask", np.int32),
            ("loss_mask", "mask", bool),
        )
    }
    return DataSpec("small_world", fields, "token", {"train": 64})


def batch(count):
    """The prompts in turn."""
    token = np.zeros((count, T + 1), np.int32)
    token[:, 0] = np.arange(count) % PROMPTS
    mask = np.tile(np.arange(T + 1) > 0, (count, 1))
    return {"token": token, "segment": np.ones_like(token), "loss_mask": mask}


def model():
    """The policy as a language model."""
    return lm.Language(network(), lm.Options(), spec(), T)


def config(**keys):
    """Adam, and nothing else."""
    made = configs.base()
    made.method = "rl_lm"
    plain = {"optimizer.name": "adam", "optimizer.learning_rate": 0.05, "optimizer.clip_norm": 0.0}
    return configs.override(made, {**plain, "ema.decay": (), "duration": "1000_steps", **keys})
