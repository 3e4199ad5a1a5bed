"""The gradient of one phase, accumulated over microbatches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from genjax.method import Aux, Batch, Phase

Tree = Any
# Name -> [total, weight]: the mean is total / weight, over one step or many.
Metrics = dict[str, jax.Array]


def part(batch: Batch, count: int, index: jax.Array | int) -> dict[str, jax.Array]:
    """Returns every `count`-th example from `index`, so that examples stay on their devices."""
    return {
        name: value.reshape(value.shape[0] // count, count, *value.shape[1:])[:, index]
        for name, value in batch.items()
    }


def gradient(
    phase: Phase,
    params: Mapping[str, Tree],
    mutable: Mapping[str, Tree],
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
    accumulation: int,
) -> tuple[Tree, Metrics, dict[str, Tree]]:
    """Returns the gradient over `accumulation` microbatches, each weighted by its `Aux.weight`.

    Returns:
      (gradient with respect to the networks that the phase trains, by name; metrics with "loss";
      the new mutable).
    """

    def loss(trained: Tree, mutable: Tree, batch: Batch, key: jax.Array):
        value, aux = phase.loss({**params, **trained}, mutable, batch, key, step)
        return value, Aux(aux.metrics, {**mutable, **aux.mutable}, jnp.float32(aux.weight))

    def microbatch_gradient(
        mutable: Tree, index: jax.Array | int
    ) -> tuple[Tree, tuple[Tree, Metrics]]:
        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(
            {name: params[name] for name in phase.networks},
            mutable,
            part(batch, accumulation, index),
            jax.random.fold_in(key, index),
        )
        w = aux.weight
        metrics = {
            name: jnp.stack([w * jnp.float32(m), w])
            for name, m in {"loss": value, **aux.metrics}.items()
        }
        return aux.mutable, (jax.tree.map(lambda g: w * g, grads), metrics)

    def accumulate(carry: Tree, index: jax.Array) -> tuple[Tree, None]:
        mutable, sums = carry
        mutable, new = microbatch_gradient(mutable, index)
        return (mutable, jax.tree.map(jnp.add, sums, new)), None

    mutable, sums = microbatch_gradient(dict(mutable), 0)
    if accumulation > 1:
        (mutable, sums), _ = jax.lax.scan(accumulate, (mutable, sums), jnp.arange(1, accumulation))
    grads, metrics = sums
    weight = metrics["loss"][1]
    # If nothing in the batch counts (only padding, say), the gradient is zero.
    return jax.tree.map(lambda g: g / jnp.where(weight > 0, weight, 1), grads), metrics, mutable
