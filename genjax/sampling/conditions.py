"""What to sample: the conditions of a batch of samples."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from genjax.method import DataSpec


def labels(spec: DataSpec, num: int, condition: Int[Array, "B"] | None) -> Int[Array, "B"]:
    """The labels of `num` samples: those given, or each class in turn.

    Raises:
      ValueError: not one label for each sample.
    """
    if condition is None:
        return jnp.arange(num) % spec.num_classes
    given = jnp.asarray(condition, jnp.int32)
    if given.shape != (num,):
        raise ValueError(f"condition: expected {num} labels, got an array of {given.shape}.")
    return given
