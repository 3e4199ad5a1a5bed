"""What to sample: the conditions of a batch of samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from genjax.config import ConfigError
from genjax.method import DataSpec


def labels_if(
    setting: str, known: bool, spec: DataSpec, num: int, condition: Array | None, key: Array
) -> Int[Array, "B"] | None:
    """`labels` for a model that knows them; None for one that does not.

    Raises:
      ConfigError: labels for a model that knows none; `setting` would have taught it.
    """
    if known:
        return labels(spec, num, condition, key)
    if condition is not None:
        raise ConfigError(
            "labels were given, but the model knows none: give none"
            + (f", or train with {setting}." if setting else ".")
        )
    return None


def labels(
    spec: DataSpec, num: int, condition: Int[Array, "B"] | None, key: Array
) -> Int[Array, "B"]:
    """The labels of `num` samples: those given, or each class in turn.

    Where the turns begin is drawn from `key`: over many batches all classes come equally often,
    also where there are more of them than samples in a batch.

    Raises:
      ValueError: not one label for each sample.
    """
    if condition is None:
        first = jax.random.randint(key, (), 0, spec.num_classes)
        return (first + jnp.arange(num)) % spec.num_classes
    given = jnp.asarray(condition, jnp.int32)
    if given.shape != (num,):
        raise ValueError(f"condition: expected {num} labels, got an array of {given.shape}.")
    return given
