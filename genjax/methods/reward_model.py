"""Reward models: a number for each answer, learnt from which of two answers is preferred.

Bradley & Terry 1952; Christiano et al. 2017; Ouyang et al. 2022, eq. 1. As a stage it gives the
rewards of `rl_lm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Weight
from genjax.config import read_options
from genjax.method import Aux, Batch, DataSpec, Method, Phase, Tree
from genjax.methods import lm, preference
from genjax.methods import preference_losses as losses
from genjax.nn.functional import Functional


class Options(NamedTuple):
    """The `reward_model` section of a config, and its defaults.

    Attributes:
      centring: weight of the squared sum of a pair's rewards, which keeps them near 0.
    """

    centring: Weight = 0.0


def reward(
    network: Functional, params: Mapping[str, Tree], mutable: Mapping[str, Tree], batch: Batch
) -> Float[Array, "N"]:
    """The reward of each row of `token`: the network's output at its last one, by `segment`."""
    token, segment = batch["token"], batch["segment"]
    (found, _), _ = network.apply(params["reward"], mutable["reward"], token, segment=segment)
    last = segment.shape[1] - 1 - jnp.argmax(segment[:, ::-1] > 0, axis=1)
    return jnp.take_along_axis(found[..., 0], last[:, None], axis=1)[:, 0]


def terms(
    network: Functional, options: Options, params: Tree, mutable: Tree, batch: Batch
) -> dict[str, Float[Array, "B"]]:
    """`loss`, `accuracy` and `margin` of each pair."""
    pair = [preference.rows(batch, which) for which in preference.PAIR]
    joined = {name: jnp.concatenate([rows[name] for rows in pair]) for name in pair[0]}
    chosen, rejected = jnp.split(reward(network, params, mutable, joined), 2)
    margin = chosen - rejected
    value = losses.bradley_terry(chosen, rejected, options.centring)
    return {"loss": value, "accuracy": (margin > 0).astype(jnp.float32), "margin": margin}


def loss(
    network: Functional,
    options: Options,
    params: Tree,
    mutable: Tree,
    batch: Batch,
    key: Array,
    step: Array,
) -> tuple[Float[Array, ""], Aux]:
    """The mean loss of the pairs."""
    found = terms(network, options, params, mutable, batch)
    means = {name: each.mean() for name, each in found.items()}
    return means.pop("loss"), Aux(means, {}, float(len(batch["chosen"])))


def evaluate(
    network: Functional, options: Options, params: Tree, mutable: Tree, batch: Batch, key: Array
) -> dict[str, Float[Array, "B"]]:
    """See `terms`."""
    return terms(network, options, params, mutable, batch)


def sample(params: Tree, mutable: Tree, key: Array, num: int, condition: Mapping) -> Array:
    """Refuses: it writes nothing."""
    raise ConfigError("method reward_model does not sample: set config.evals.samples=0.")


def build(config: ConfigDict, spec: DataSpec) -> Method:
    """The reward model with the network of `config.model`, with one output: see `lm.build`.

    Raises:
      ConfigError: the data are no pairs, or the config asks for something that does not exist.
    """
    options = read_options(config.reward_model, "reward_model", Options)
    preference.check_pairs(spec, "reward_model")
    network, _, rules = lm.parts(config, spec, whole=True, outputs=1)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        params, mutable = network.init(key)
        return {"reward": params}, {"reward": mutable}

    return Method(
        init=init,
        phases=(Phase("reward", partial(loss, network, options)),),
        evaluate=partial(evaluate, network, options),
        sample=sample,
        rules=rules,
        apply=partial(reward, network),
    )
