"""The communication that a layout cannot do without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from genjax.method import Phase, Tree

WHOLE = ("data", "fsdp", "sequence")  # axes over which gradients are summed that they do not split


class Needed(NamedTuple):
    """What one device sends in a step at least.

    Attributes:
      kind: "all-gather", "reduce-scatter" or "all-reduce".
      axes: of the mesh that it goes over.
      bytes: that a device sends.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int


def of_step(
    params: Mapping[str, Tree], phases: Sequence[Phase], mesh: Mesh, precision: str
) -> list[Needed]:
    """What a step needs of FSDP and data parallelism, by rings.

    A parameter that is split over `fsdp` is gathered in the compute type, once for the forward and
    once for the backward pass, and its gradient is summed into the same parts (Rajbhandari et al.
    2020, section 7). The gradients of one that is whole on several devices are summed by an
    all-reduce, which sends everything twice. Gradients are float32. Microbatches are not counted:
    they need no more as long as memory holds what was gathered. Nor are the activations that the
    axis `tensor` exchanges.

    Args:
      params: of the networks, shapes with their shardings.
      phases: of the method; each counts the networks that it trains.
      mesh: the devices.
      precision: of products.
    """
    sent = {("all-gather", ("fsdp",)): 0.0, ("reduce-scatter", ("fsdp",)): 0.0}
    size = jnp.dtype(precision).itemsize
    for phase in phases:
        times = phase.repeat * phase.passes
        for leaf in jax.tree.leaves([params[name] for name in phase.networks]):
            split = {axis for part in leaf.sharding.spec for axis in _names(part)}
            count = leaf.size
            for axis in split - {"fsdp"}:
                count //= mesh.shape[axis]
            whole = tuple(a for a in WHOLE if a not in split and mesh.shape[a] > 1)
            if "fsdp" in split:
                n = mesh.shape["fsdp"]
                share = (n - 1) / n * count * times
                sent["all-gather", ("fsdp",)] += 2 * share * size
                sent["reduce-scatter", ("fsdp",)] += 4 * share
                count //= n
            if whole:
                n = 1
                for axis in whole:
                    n *= mesh.shape[axis]
                summed = 2 * (n - 1) / n * count * 4 * times
                sent["all-reduce", whole] = sent.get(("all-reduce", whole), 0.0) + summed
    return [Needed(kind, axes, round(n)) for (kind, axes), n in sent.items() if n]


def _names(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes of one entry of a PartitionSpec."""
    if part is None:
        return ()
    return (part,) if isinstance(part, str) else tuple(part)
