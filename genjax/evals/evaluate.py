"""Averages of what a method's `evaluate` gives over a whole split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from genjax.method import Batch, Method, Ratio
from genjax.parallel.mesh import global_batch

Tree = Any


def make_evaluate(method: Method, mesh: jax.sharding.Mesh) -> Callable[..., dict[str, Array]]:
    """The jitted (params, mutable, batch, valid, key) -> {name: sums over the valid examples}.

    The sums are of x, w, x^2, x w, w^2 and 1, with x the totals and w the weights of a `Ratio`,
    which are 1 for a plain quantity; of a scalar, which has no spread over examples, of x and 1.
    """

    def sums(
        params: Tree, mutable: Tree, batch: Batch, valid: Bool[Array, "B"], key: jax.Array
    ) -> dict[str, Array]:
        def reduced(value: Array | Ratio) -> Array:
            if not isinstance(value, Ratio) and jnp.ndim(value) == 0:
                return jnp.stack([value, 1.0]) * valid.sum()
            x, w = value if isinstance(value, Ratio) else (value, jnp.ones_like(value))
            x, w = (jnp.where(valid, v.astype(jnp.float32), 0.0) for v in (x, w))
            return jnp.stack([x, w, x * x, x * w, w * w, valid.astype(jnp.float32)]).sum(-1)

        values = method.evaluate(params, mutable, batch, key)
        return {name: reduced(value) for name, value in values.items()}

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

    The mean of a `Ratio` is the ratio of the sums, its standard error that of the ratio estimator
    (Cochran 1977, eq. 6.13, of a large population); a scalar has none. A quantity of which there is
    nothing is left out.

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
    for name, (x, w, *rest) in totals.items():
        if not w:
            continue
        mean = x / w
        results[name] = float(mean)
        if not rest:
            continue
        xx, xw, ww, count = rest
        squares = max(xx - 2 * mean * xw + mean**2 * ww, 0.0)
        results[f"{name}_se"] = math.sqrt(squares * count / max(count - 1, 1)) / w
    return results
