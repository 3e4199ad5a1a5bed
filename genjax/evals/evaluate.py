"""Averages of a method's per-example quantities over a whole split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from genjax.method import Batch, Method
from genjax.parallel.mesh import global_batch

Tree = Any


def make_evaluate(method: Method, mesh: jax.sharding.Mesh) -> Callable[..., dict[str, Array]]:
    """The jitted (params, mutable, batch, valid, key) -> {name: [sum, sum of squares, count]}."""

    def sums(
        params: Tree, mutable: Tree, batch: Batch, valid: Bool[Array, "B"], key: jax.Array
    ) -> dict[str, Array]:
        values = method.evaluate(params, mutable, batch, key)
        values = {name: jnp.where(valid, v.astype(jnp.float32), 0.0) for name, v in values.items()}
        count = valid.sum().astype(jnp.float32)
        return {
            name: jnp.stack([v.sum(), jnp.square(v).sum(), count]) for name, v in values.items()
        }

    return jax.jit(sums, out_shardings=NamedSharding(mesh, PartitionSpec()))


def evaluate(
    sums: Callable[..., dict[str, Array]],
    params: Tree,
    mutable: Tree,
    batches: Iterable[tuple[Mapping[str, np.ndarray], np.ndarray]],
    key: jax.Array,
    mesh: jax.sharding.Mesh,
) -> dict[str, float]:
    """The mean of each quantity over all examples, and its standard error as `<name>_se`.

    Args:
      sums: of `make_evaluate`.
      params: the parameters to judge.
      mutable: their network state.
      batches: (batch, valid) pairs; examples that are not valid are padding and do not count.
      key: batch i is evaluated with this key folded with i.
      mesh: of the run.
    """
    totals: dict[str, np.ndarray] = {}
    for i, (batch, valid) in enumerate(batches):
        placed = global_batch({**batch, "_valid": valid}, mesh)
        mask = placed.pop("_valid")
        found = sums(params, mutable, placed, mask, jax.random.fold_in(key, i))
        for name, value in jax.device_get(found).items():
            totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
    results = {}
    for name, (total, squares, count) in totals.items():
        mean = total / count
        variance = max(squares / count - mean**2, 0.0) * count / max(count - 1, 1)
        results[name] = float(mean)
        results[f"{name}_se"] = math.sqrt(variance / count)
    return results
