"""REINFORCE with a KL penalty (Williams 1992; Ziegler et al. 2019): a toy that has an optimum.

An example's label is a prompt, the answer a sequence of `length` tokens. The policy is a table of
logits by prompt and by what has been said, so that it can be any distribution. Of

  J = E_p[r(x)] - beta KL(p || uniform)

the optimum is p*(x) ~ exp(r(x) / beta), and there r - beta log p is the same for every x: the
advantages are zero, and with them the noise of the gradient.
"""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.config import ConfigError, read_options
from genjax.method import Aux, Method, Phase
from genjax.modalities.label import num_classes
from genjax.parallel.rules import replicate


class Options(NamedTuple):
    """The `reinforce` section of a config.

    Attributes:
      tokens: V, values of a token.
      length: T, tokens of an answer.
      answers: drawn for each prompt.
      beta: of the KL.
      passes: over the answers of a step.
    """

    tokens: int = 3
    length: int = 2
    answers: int = 8
    beta: float = 0.5
    passes: int = 2


def rewards(prompts: int, o: Options) -> Float[np.ndarray, "C X"]:
    """The reward of every answer to every prompt; they lie in no order."""
    place = np.arange(o.tokens**o.length)
    return np.cos(1.0 + 2.0 * place[None] + 0.7 * np.arange(prompts)[:, None])


def every_answer(o: Options) -> Int[np.ndarray, "X T"]:
    """All answers; number x has the digits of x to the base V."""
    return np.array(list(itertools.product(range(o.tokens), repeat=o.length)))


def number(o: Options, answer: Int[Array, "... T"]) -> Int[Array, "..."]:
    """The place of an answer in `every_answer`."""
    return answer @ jnp.asarray(o.tokens ** np.arange(o.length)[::-1])


def log_p(
    o: Options, table: dict, prompt: Int[Array, "N"], answer: Int[Array, "N T"]
) -> Float[Array, "N"]:
    """log p(answer | prompt)."""
    total = jnp.zeros(len(prompt))
    for t in range(o.length):
        said = answer[:, :t] @ jnp.asarray(o.tokens ** np.arange(t)[::-1], jnp.int32)
        logits = jax.nn.log_softmax(table[f"logits_{t}"][prompt, said])
        total += jnp.take_along_axis(logits, answer[:, t : t + 1], -1)[:, 0]
    return total


def draw(o: Options, table: dict, prompt: Int[Array, "N"], key: Array) -> Int[Array, "N T"]:
    """An answer to each prompt."""
    answer = jnp.zeros((len(prompt), 0), jnp.int32)
    for t in range(o.length):
        said = answer @ jnp.asarray(o.tokens ** np.arange(t)[::-1], jnp.int32)
        logits = table[f"logits_{t}"][prompt, said]
        token = jax.random.categorical(jax.random.fold_in(key, t), logits)
        answer = jnp.concatenate([answer, token[:, None].astype(jnp.int32)], 1)
    return answer


def rollout(o: Options, values: Array, params: dict, mutable: dict, batch, key: Array, step):
    """Answers, their log p, and advantages: reward less penalty, less the others' mean."""
    prompt = jnp.repeat(batch["label"], o.answers)
    answer = draw(o, params["policy"], prompt, key)
    old = log_p(o, params["policy"], prompt, answer)
    gain = values[prompt, number(o, answer)] - o.beta * old
    gain = gain.reshape(-1, o.answers)
    others = (gain.sum(1, keepdims=True) - gain) / (o.answers - 1)
    return {"prompt": prompt, "answer": answer, "old": old, "gain": (gain - others).reshape(-1)}


def loss(o: Options, params: dict, mutable: dict, batch, key: Array, step):
    """Minus the advantage, weighed by p / p_old: unbiased in the second pass too."""
    ratio = jnp.exp(log_p(o, params["policy"], batch["prompt"], batch["answer"]) - batch["old"])
    return -(ratio * batch["gain"]).mean(), Aux({"ratio": ratio.mean()}, {})


def evaluate(o: Options, values: Array, params: dict, mutable: dict, batch, key: Array):
    """KL(p || p*) of each example's prompt, by all answers."""
    answers, B = every_answer(o), len(batch["label"])
    prompt = jnp.repeat(batch["label"], len(answers))
    found = log_p(o, params["policy"], prompt, jnp.tile(answers, (B, 1))).reshape(B, -1)
    best = jax.nn.log_softmax(values / o.beta)[batch["label"]]
    return {"kl": (jnp.exp(found) * (found - best)).sum(1)}


def build(config, spec) -> Method:
    """The policy of `config.reinforce` on the labels of `spec`."""
    o, prompts = read_options(config.reinforce, "reinforce", Options), num_classes(spec)
    values = jnp.asarray(rewards(prompts, o), jnp.float32)

    def init(key, batch):
        shapes = {f"logits_{t}": (prompts, o.tokens**t, o.tokens) for t in range(o.length)}
        return {"policy": {name: jnp.zeros(shape) for name, shape in shapes.items()}}, {}

    def sample(params, mutable, key, num, condition=None):
        raise ConfigError("reinforce does not sample pictures: set evals.samples=0.")

    return Method(
        init=init,
        phases=(Phase("policy", partial(loss, o), passes=o.passes),),
        evaluate=partial(evaluate, o, values),
        sample=sample,
        rules=((".*", replicate),),
        prepare=partial(rollout, o, values),
    )
