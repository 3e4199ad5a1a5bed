"""Where activations lie on the mesh that is set.

Networks call `laid` at the edges of their blocks. The compiler places what lies between, and moves
no data that it need not. Parameters are placed by `rules`, batches by `mesh`.
"""

from __future__ import annotations

import math

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

Axes = str | tuple[str, ...] | None

EXAMPLES = ("data", "fsdp")  # the examples of a batch
LENGTH = "sequence"  # positions of a sequence
UNITS = "tensor"  # heads, and hidden units of a layer

_ANYWHERE = PartitionSpec.UNCONSTRAINED


def laid(x: Float[Array, "..."], *axes: Axes) -> Float[Array, "..."]:
    """`x` split over axes of the mesh that is set; without a mesh, or on one device, `x` itself.

    Args:
      x: an array.
      axes: for each axis of `x` those of the mesh that split it; None keeps it whole. An axis of
        `x` that they do not divide is left to the compiler, and so are examples under `jax.vmap`:
        they may be split over what is mapped.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = [_part(mesh, size, of) for size, of in zip(x.shape, axes, strict=True)]
    if all(part is _ANYWHERE for part in spec):
        return x
    return laid_p.bind(x, mesh=mesh, spec=PartitionSpec(*spec))


def ways(*axes: str) -> int:
    """In how many parts these axes of the mesh that is set split an array; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in _automatic(mesh, axes))


def _automatic(mesh: AbstractMesh, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the axes that the mesh has, and that no `jax.shard_map` has taken."""
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return tuple(name for name in axes if types.get(name) == AxisType.Auto)


def dividing(mesh: AbstractMesh, size: int, axes: tuple[str, ...]) -> tuple[str, ...] | None:
    """Those of the axes that the mesh has, if they divide `size`; None if not."""
    known = _automatic(mesh, axes)
    parts = math.prod(mesh.shape[name] for name in known)
    return known if known and size % parts == 0 else None


def _part(mesh: AbstractMesh, size: int, axes: Axes) -> Axes:
    if axes is None:
        return None
    found = dividing(mesh, size, (axes,) if isinstance(axes, str) else axes)
    return _ANYWHERE if found is None else found


def _constrained(x: Array, *, mesh: AbstractMesh, spec: PartitionSpec) -> Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def _batched(arrays: tuple, dims: tuple, *, mesh: AbstractMesh, spec: PartitionSpec) -> tuple:
    parts = [_ANYWHERE if part == EXAMPLES else part for part in spec]
    parts.insert(dims[0], _ANYWHERE)
    return laid_p.bind(*arrays, mesh=mesh, spec=PartitionSpec(*parts)), dims[0]


# A primitive, as JAX's own constraint keeps the axis of the examples under `jax.vmap` too.
laid_p = Primitive("laid")
laid_p.def_impl(lambda x, **_: x)
laid_p.def_abstract_eval(lambda x, **_: x)
ad.deflinear2(laid_p, lambda g, _, **named: [laid_p.bind(g, **named)])
batching.primitive_batchers[laid_p] = _batched
mlir.register_lowering(laid_p, mlir.lower_fun(_constrained, multiple_results=False))
