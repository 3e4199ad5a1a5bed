"""Exponential moving averages of the parameters, one profile for each decay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

Tree = Any


def init(config: ConfigDict, params: Tree) -> dict[str, Tree]:
    """A copy of `params` for each decay of `config.ema.decay`, named by it."""
    return {str(decay): jax.tree.map(jnp.array, params) for decay in config.ema.decay}


def update(config: ConfigDict, ema: dict[str, Tree], params: Tree, step: jax.Array) -> dict:
    """`ema <- d ema + (1 - d) params` after the update of `step` (0-based).

    With `config.ema.warmup`, d is min(decay, (1 + step) / (10 + step)), so that the average
    forgets the initial parameters early in a run.
    """

    def profile(decay: float, tree: Tree) -> Tree:
        d = jnp.asarray(decay, jnp.float32)
        if config.ema.warmup:
            d = jnp.minimum(d, (1.0 + step) / (10.0 + step))
        return jax.tree.map(lambda e, p: e + (1.0 - d) * (p - e), tree, params)

    return {str(decay): profile(decay, ema[str(decay)]) for decay in config.ema.decay}


def evaluation_params(config: ConfigDict, params: Tree, ema: dict[str, Tree]) -> Tree:
    """The parameters that evaluations and samples use: the first profile, or the raw ones."""
    return ema[str(config.ema.decay[0])] if config.ema.decay else params
