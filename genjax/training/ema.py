"""Exponential moving averages of the parameters, one profile for each decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from genjax.config import ConfigError

Tree = Any


def init(config: ConfigDict, params: dict[str, Tree], trained: Iterable[str]) -> dict[str, Tree]:
    """A copy of the averaged networks for each decay of `config.ema.decay`, named by it.

    Args:
      config: the whole config.
      params: by network.
      trained: the networks that the phases train: averaged unless `config.ema.networks` names
        others.

    Raises:
      ConfigError: `config.ema.networks` names one that is not trained.
    """
    names = config.ema.networks or tuple(sorted(trained))
    if unknown := set(names) - set(trained):
        raise ConfigError(
            f"config.ema.networks={tuple(names)!r}: {sorted(unknown)} is not trained; these are: "
            f"{sorted(trained)}."
        )
    averaged = {name: params[name] for name in names}
    return {str(decay): jax.tree.map(jnp.array, averaged) for decay in config.ema.decay}


def update(
    config: ConfigDict, ema: dict[str, Tree], params: dict[str, Tree], step: jax.Array
) -> dict[str, Tree]:
    """`ema <- d ema + (1 - d) params` after the update of `step` (0-based).

    With `config.ema.warmup`, d is min(decay, (1 + step) / (10 + step)), so that the average
    forgets the initial parameters early in a run.
    """

    def profile(decay: float, tree: Tree) -> Tree:
        d = jnp.asarray(decay, jnp.float32)
        if config.ema.warmup:
            d = jnp.minimum(d, (1.0 + step) / (10.0 + step))
        averaged = {name: params[name] for name in tree}
        return jax.tree.map(lambda e, p: e + (1.0 - d) * (p - e), tree, averaged)

    return {str(decay): profile(decay, ema[str(decay)]) for decay in config.ema.decay}


def evaluation_params(
    config: ConfigDict, params: dict[str, Tree], ema: dict[str, Tree]
) -> dict[str, Tree]:
    """What evaluations and samples use: the first profile where there is one, else the raw."""
    return {**params, **(ema[str(config.ema.decay[0])] if config.ema.decay else {})}
