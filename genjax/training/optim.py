"""Optimizers from a config, over optax. `TrainState.step` is the only clock.

An optimizer is an `optax.GradientTransformationExtraArgs` whose update takes `step=` and returns
the change to add to the parameters: clipping, the optimizer's direction, decoupled weight decay,
`-learning_rate(step)` times the parameter's multiplier, then clipping of the parameters themselves
(Arjovsky et al. 2017, algorithm 1). `config.optimizer` holds for all networks of a game;
`config.optimizer.networks.<name>` overrides it for one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

from genjax.config import ConfigError, nearest, one_of, require
from genjax.nn.heads import BY_HEAD
from genjax.nn.low_rank import stacked
from genjax.parallel.rules import first_match, path_name

Tree = Any


def _momentum(c: ConfigDict) -> optax.GradientTransformation:
    return optax.trace(c.momentum) if c.momentum else optax.identity()


def _muon(c: ConfigDict) -> optax.GradientTransformation:
    """Muon for matrices (a convolution is the matrix [k k in, out]), Adam for everything else.

    A stack over depth has one matrix per block.

    optax has only the whole optimizer; with a learning rate of -1 it returns the direction.
    """

    def dimensions(params: Tree) -> Tree:
        def leaf(path: Sequence[Any], p: jax.Array) -> MuonDimensionNumbers | None:
            if p.ndim < 2 or not path_name(path).endswith("kernel"):
                return None
            # Columns of queries, keys and values are grouped by heads: see `nn.heads`.
            by_head = BY_HEAD.search(path_name(path))
            first = p.ndim - (2 if by_head else 1)
            begin = int(stacked(path_name(path)))
            if first <= begin:
                return None
            return MuonDimensionNumbers(tuple(range(begin, first)), tuple(range(first, p.ndim)))

        return jax.tree_util.tree_map_with_path(leaf, params)

    return muon(
        -1.0,
        beta=c.momentum,
        eps=c.eps,
        adam_b1=c.b1,
        adam_b2=c.b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=dimensions,
    )


# Name -> the direction, before weight decay and the learning rate.
OPTIMIZERS: dict[str, Callable[[ConfigDict], optax.GradientTransformation]] = {
    "adamw": lambda c: optax.scale_by_adam(c.b1, c.b2, c.eps),
    "adam": lambda c: optax.scale_by_adam(c.b1, c.b2, c.eps),
    "rmsprop": lambda c: optax.scale_by_rms(c.b2, c.eps, eps_in_sqrt=False),
    "sgd": _momentum,
    "lion": lambda c: optax.scale_by_lion(c.b1, c.b2),
    "muon": _muon,
}

LADDER = tuple(3**i for i in range(8))  # passes over the data at each rate (Burda et al. 2016)


def section(config: ConfigDict, network: str) -> ConfigDict:
    """Returns `config.optimizer` as it holds for one network."""
    overrides = config.optimizer.networks.get(network, {})
    return ConfigDict({**config.optimizer, **overrides})


def _ladder(peak: float, final: float, steps: int) -> optax.Schedule:
    expected = "above 0: the ladder ends at this share of the peak, in the paper at 0.1"
    require(final > 0, "config.schedule.final", final, expected)
    last = len(LADDER) - 1
    ends = [round(steps * sum(LADDER[: i + 1]) / sum(LADDER)) for i in range(last)]
    rates = [peak * final ** (i / last) for i in range(last + 1)]
    return lambda step: jnp.array(rates)[(step >= jnp.array(ends)).sum()]


def learning_rate(
    config: ConfigDict, network: str, total_steps: int, warmup_steps: int
) -> optax.Schedule:
    """The learning rate of one network as a function of the step.

    First a linear warm-up: update n (counted from 1) has n / `warmup_steps` of the peak. Then, by
    `config.schedule.name`: "constant"; "cosine" (Loshchilov & Hutter 2017, eq. 5) and "linear" to
    `schedule.final` times the peak at `total_steps`; "inverse_sqrt" (Vaswani et al. 2017, eq. 3),
    peak * sqrt(warmup / n); "ladder" (Burda et al. 2016, section 5), peak * final^(i/7) in part
    i = 0 ... 7 of the run, each part three times as long as the one before.

    Raises:
      ConfigError: unknown schedule, a warm-up that is not shorter than the run, or a ladder to 0.
    """
    name, peak, final = (
        config.schedule.name,
        section(config, network).learning_rate,
        config.schedule.final,
    )
    if warmup_steps and warmup_steps >= total_steps:
        raise ConfigError(
            f"config.schedule.warmup is {warmup_steps} steps: expected fewer than the run's "
            f"{total_steps}. Make it shorter, or the duration longer."
        )
    after = total_steps - warmup_steps
    shift = max(warmup_steps, 1)
    schedules = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, after, final),
        "linear": lambda: optax.linear_schedule(peak, peak * final, after),
        "inverse_sqrt": lambda: lambda step: peak * jnp.sqrt(shift / (warmup_steps + step + 1)),
        "ladder": lambda: _ladder(peak, final, after),
    }
    if name not in schedules:
        raise ConfigError(
            f"config.schedule.name={name!r}: no such schedule. Nearest: {nearest(name, schedules)}."
        )
    if not warmup_steps:
        return schedules[name]()
    return optax.join_schedules(
        [lambda step: peak * ((step + 1) / warmup_steps), schedules[name]()], [warmup_steps]
    )


def _by_path(rules: Sequence[tuple[str, Any]], params: Tree, prefix: str, kind: str) -> Tree:
    """The value of the first matching rule for every parameter; paths begin with `prefix`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: first_match(rules, f"{prefix}/{path_name(path)}", kind), params
    )


def _over_depth(factor: float | Sequence[float], parameter: jax.Array) -> float | jax.Array:
    """The factor of a learning rate; of two for a stack of blocks, one for each block.

    The two are those of the first and the last block, and the logarithm is linear in between
    (Howard & Ruder 2018, section 3.2, "discriminative fine-tuning").
    """
    if not isinstance(factor, tuple | list):
        return factor
    each = jnp.geomspace(*factor, parameter.shape[0], dtype=jnp.float32)
    return each.reshape(-1, *[1] * (parameter.ndim - 1))


def check_rules(config: ConfigDict, params: Mapping[str, Tree]) -> None:
    """Checks that the rules and the parameters of all networks fit each other.

    Raises:
      ConfigError: a freeze or learning-rate rule matches no parameter, a parameter matches no
        learning-rate or weight-decay rule, a rule has two factors for a parameter that is not
        stacked over blocks, or `config.optimizer.networks` names no network.
    """
    for network in config.optimizer.networks:
        one_of("config.optimizer.networks", network, sorted(params))
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(dict(params))]
    patterns = {
        "freeze": tuple(config.optimizer.freeze),
        "learning_rate_rules": tuple(p for p, _ in config.optimizer.learning_rate_rules),
    }
    for key, regexes in patterns.items():
        for regex in regexes:
            if not any(re.search(regex, path) for path in paths):
                raise ConfigError(
                    f"config.optimizer.{key}: {regex!r} matches no parameter. "
                    f"Nearest: {nearest(regex, paths)}."
                )
    for key in ("learning_rate_rules", "weight_decay_rules"):
        for path in paths:
            if not any(re.search(regex, path) for regex, _ in config.optimizer[key]):
                raise ConfigError(
                    f"config.optimizer.{key}: no rule matches {path!r}. End the rules with "
                    "('.*', 1.0)."
                )
    for path in paths:
        factor = first_match(config.optimizer.learning_rate_rules, path, "learning rate")
        if isinstance(factor, tuple | list) and not stacked(path):
            raise ConfigError(
                f"config.optimizer.learning_rate_rules: {path!r} has the factors {tuple(factor)}, "
                "those of the first and the last block, and is not stacked over blocks. Put a rule "
                "with one factor before this one."
            )


def build(
    config: ConfigDict, network: str, schedule: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of one network.

    Args:
      config: the whole config; `config.optimizer` is read.
      network: name of the network, the first part of its parameters' paths.
      schedule: the learning rate by step.

    Returns:
      A transformation whose `update(grads, state, params, step=step)` gives the change to add.

    Raises:
      ConfigError: unknown optimizer.
    """
    c = section(config, network)
    if c.name not in OPTIMIZERS:
        raise ConfigError(
            f"config.optimizer.name={c.name!r}: no such optimizer. "
            f"Nearest: {nearest(c.name, OPTIMIZERS)}."
        )

    def decay(updates: Tree, params: Tree) -> Tree:
        factors = _by_path(c.weight_decay_rules, params, network, "weight decay")
        return jax.tree.map(lambda u, p, f: u + c.weight_decay * f * p, updates, params, factors)

    def clip(updates: Tree, params: Tree) -> Tree:
        bound = c.weight_clip
        return jax.tree.map(lambda u, p: jnp.clip(p + u, -bound, bound) - p, updates, params)

    def scale(updates: Tree, state: optax.EmptyState, params: Tree, *, step: jax.Array):
        factors = _by_path(c.learning_rate_rules, params, network, "learning rate")
        rate = schedule(step)
        # A pair of factors is below the structure of the updates, so it comes whole.
        return jax.tree.map(lambda u, f: -rate * _over_depth(f, u) * u, updates, factors), state

    chain = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm else []
    chain.append(OPTIMIZERS[c.name](c))
    if c.weight_decay:
        chain.append(optax.stateless(decay))
    chain.append(optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), scale))
    if c.weight_clip:
        chain.append(optax.stateless(clip))
    trained = optax.chain(*chain)
    if not c.freeze:
        return trained

    def labels(params: Tree) -> Tree:
        rules = (*((regex, "frozen") for regex in c.freeze), (".*", "trained"))
        return _by_path(rules, params, network, "freeze")

    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)
