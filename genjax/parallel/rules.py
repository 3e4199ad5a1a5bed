"""Rules that place every leaf of a train state on the mesh.

A rule is `(regex, tactic)`; the regex is searched in the leaf's path, such as
`opt_state/generator/0/mu/conv/kernel`, and the first match is used. A tactic is a `PartitionSpec`,
or a function of (shape, mesh) that returns one. The paths of moments and averages end in their
parameter's path, so one rule places all of them in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tactic = PartitionSpec | Callable[[tuple[int, ...], Mesh], PartitionSpec]
Rules = Sequence[tuple[str, Tactic]]
Tree = Any

# Leaves with fewer elements are not sharded: gathering them costs more than keeping copies.
MIN_SHARDED_SIZE = 2**12

# Leaves of every state besides parameters: the step, the key, an optimizer's own scalars.
STATE_RULES: Rules = ((r"^step$|^key$|(^|/)(count|ns_coeffs)$", PartitionSpec()),)


def replicate(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Replicates the leaf on every device."""
    del shape, mesh
    return PartitionSpec()


def _shard_largest(spec: list[str | None], shape: tuple[int, ...], mesh: Mesh) -> None:
    """Puts the fsdp axis on the largest free dimension that it divides, if the leaf is large."""
    size = mesh.shape["fsdp"]
    free = [i for i, n in enumerate(shape) if spec[i] is None and n % size == 0]
    if size > 1 and free and np.prod(shape) >= MIN_SHARDED_SIZE:
        spec[max(free, key=lambda i: (shape[i], i))] = "fsdp"


def fsdp(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Shards the largest divisible dimension over `fsdp` (ZeRO, Rajbhandari et al. 2020)."""
    spec: list[str | None] = [None] * len(shape)
    _shard_largest(spec, shape, mesh)
    return PartitionSpec(*spec)


def table(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Shards the vectors of a table [..., entries, D] along D over `fsdp`, or what `fsdp` shards.

    Each device then looks up its part of every vector. Of a table that is split by entries, each
    device looks up all vectors, most of them zero, and those of a whole batch are summed.
    """
    size = mesh.shape["fsdp"]
    if size > 1 and shape[-1] % size == 0 and np.prod(shape) >= MIN_SHARDED_SIZE:
        return PartitionSpec(*[None] * (len(shape) - 1), "fsdp")
    return fsdp(shape, mesh)


def tensor(axis: int) -> Tactic:
    """Shards dimension `axis` over `tensor` (Shoeybi et al. 2019), and another over `fsdp`."""

    def tactic(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        spec: list[str | None] = [None] * len(shape)
        if mesh.shape["tensor"] > 1 and shape[axis] % mesh.shape["tensor"] == 0:
            spec[axis] = "tensor"
        _shard_largest(spec, shape, mesh)
        return PartitionSpec(*spec)

    return tactic


def sharing(tactic: Tactic, whole: tuple[int, ...], axes: Sequence[int | None]) -> Tactic:
    """The tactic of an array that shares axes with a larger one, such as a factor of a kernel.

    Each shared axis is split over `tensor` if it is in the larger array; `fsdp` splits another.

    Args:
      tactic: of the larger array.
      whole: its shape.
      axes: for each axis of the array, its number in the larger one; None for one of its own.
    """

    def shared(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        spec = tactic if isinstance(tactic, PartitionSpec) else tactic(whole, mesh)
        names = [*spec, *[None] * (len(whole) - len(spec))]
        names = [name if name == "tensor" else None for name in names]
        own = [None if axis is None else names[axis] for axis in axes]
        _shard_largest(own, shape, mesh)
        return PartitionSpec(*own)

    return shared


def path_name(path: Sequence[Any]) -> str:
    """A key path of jax.tree_util as `a/0/b`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def first_match(rules: Sequence[tuple[str, Any]], path: str, what: str) -> Any:
    """The value of the first rule whose regex matches in `path`; `what` names the kind of rules.

    Raises:
      ValueError: no rule matches; names the path and the regexes.
    """
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    patterns = ", ".join(repr(pattern) for pattern, _ in rules)
    raise ValueError(f"no {what} rule matches {path!r}; the rules are {patterns}")


def shardings(tree: Tree, rules: Rules, mesh: Mesh) -> Tree:
    """The sharding of every leaf of `tree` (arrays or ShapeDtypeStructs).

    Raises:
      ValueError: no rule matches a leaf, or a spec does not divide a leaf.
    """
    rules = (*STATE_RULES, *rules)

    def place(path: Sequence[Any], leaf: Any) -> NamedSharding:
        name = path_name(path)
        tactic = first_match(rules, name, "sharding")
        spec = tactic if isinstance(tactic, PartitionSpec) else tactic(leaf.shape, mesh)
        sharding = NamedSharding(mesh, spec)
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError as error:
            raise ValueError(f"sharding of {name!r}: {error}") from error
        return sharding

    return jax.tree_util.tree_map_with_path(place, tree)
