"""Averages over a whole split of the quantities that a method's `evaluate` returns."""

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

    With x the totals and w the weights of a `Ratio` (w = 1 for a plain quantity), r is the batch's
    ratio of their sums and e = x - r w the residual. The result is r and the sums of w, e, e^2,
    e w, w^2 and 1; none of these cancels in float32 as x^2 would. A scalar has no spread over
    examples: its result is the scalar and the sum of 1.
    """

    def sums(
        params: Tree, mutable: Tree, batch: Batch, valid: Bool[Array, "B"], key: jax.Array
    ) -> dict[str, Array]:
        def reduced(value: Array | Ratio) -> Array:
            if not isinstance(value, Ratio) and jnp.ndim(value) == 0:
                return jnp.stack([jnp.float32(value), valid.sum(dtype=jnp.float32)])
            x, w = value if isinstance(value, Ratio) else (value, jnp.ones_like(value))
            x, w = (jnp.where(valid, v.astype(jnp.float32), 0.0) for v in (x, w))
            r = x.sum() / w.sum()
            r = jnp.where(jnp.isfinite(r), r, 0.0)
            e = x - r * w
            sums = jnp.stack([w, e, e * e, e * w, w * w, valid.astype(jnp.float32)]).sum(-1)
            return jnp.concatenate([r[None], sums])

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

    The mean of a `Ratio` is the ratio of the sums; its standard error is the ratio estimator's
    (Cochran 1977, eq. 6.13, for a large population). Scalars and single examples have no standard
    error. A quantity whose weights sum to 0 is left out.

    Args:
      sums: the function from `make_evaluate`.
      params: the parameters to evaluate.
      mutable: their network state.
      batches: (batch, valid) pairs; examples that are not valid are padding and do not count.
      key: batch i is evaluated with this key folded with i.
      mesh: the run's devices.
    """
    rows: dict[str, list[np.ndarray]] = {}
    for i, (batch, valid) in enumerate(batches):
        placed = global_batch({**batch, "_valid": valid}, mesh)
        mask = placed.pop("_valid")
        batch_sums = sums(params, mutable, placed, mask, jax.random.fold_in(key, i))
        for name, value in jax.device_get(batch_sums).items():
            rows.setdefault(name, []).append(value.astype(np.float64))
    results = {}
    for name, batch_rows in rows.items():
        r, w, *rest = np.stack(batch_rows, axis=1)
        total = w.sum()
        if not total:
            continue
        if not rest:
            results[name] = float((r * w).sum() / total)
            continue
        e, ee, ew, ww, count = rest
        mean = results[name] = float((r * w + e).sum() / total)
        if count.sum() > 1:
            off = r - mean  # per batch: x - mean w = e + off w
            with np.errstate(invalid="ignore"):  # values that are not finite
                squares = max(float((ee + 2 * off * ew + off**2 * ww).sum()), 0.0)
            n = count.sum()
            results[f"{name}_se"] = math.sqrt(squares * n / (n - 1)) / float(total)
    return results
