"""Bilinear primitives: derivatives of every order, and one place that chooses how to compute.

A primitive is one function of two arrays, linear in each. Its derivatives are products of the same
kind, whatever the device; how a product is computed is a matter of lowering alone:

  accelerators   the standard operation of `jax.lax`, which their compilers know best
  the CPU        a form of `genjax.nn.cpu` where there is a faster one, else the standard operation

The choice is made when a program is lowered for a platform, so `jax.export` to another one takes
that one's, and what is lowered is made of ordinary operations, which XLA partitions over a mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

Form = Callable[..., jax.Array]


def bilinear(
    name: str, *, result: Callable, standard: Form, cpu: Callable[..., jax.Array | None]
) -> Primitive:
    """A primitive of two arrays and static parameters; `differentiated` completes it.

    Args:
      name: as programs print it.
      result: (x, y, **parameters) -> shape and dtype, of abstract arrays.
      standard: (x, y, **parameters) -> array, by operations of `jax.lax`.
      cpu: the same for the CPU, or None where `standard` is as fast, by shapes and types.
    """
    primitive = Primitive(name)

    def abstract(x: jax.core.ShapedArray, y: jax.core.ShapedArray, **parameters):
        if x.dtype != y.dtype:
            raise TypeError(f"{name} of {x.str_short()} and {y.str_short()}: cast one of them")
        shape, dtype = result(x, y, **parameters)
        nowhere = x.sharding.update(spec=jax.P(*[None] * len(shape)))
        return x.update(shape=shape, dtype=dtype, sharding=nowhere, weak_type=False)

    def on_cpu(x: jax.Array, y: jax.Array, **parameters) -> jax.Array:
        found = cpu(x, y, **parameters)
        return standard(x, y, **parameters) if found is None else found

    primitive.def_impl(partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(standard, multiple_results=False))
    mlir.register_lowering(
        primitive, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu"
    )
    return primitive


def differentiated(
    primitive: Primitive, *, in_first: Callable, in_second: Callable, batched: Callable
) -> None:
    """Gives a primitive its transposes, and with them all derivatives, and its form under `vmap`.

    Args:
      primitive: made by `bilinear`.
      in_first: (cotangent, x, y, **parameters) -> cotangent of x, of which only `aval` is known.
      in_second: the same for y.
      batched: (arrays, batch axes, **parameters) -> array, batch axis; an axis is None where an
        array has none, never of both.
    """
    ad.defbilinear(primitive, in_first, in_second)
    batching.primitive_batchers[primitive] = batched


def precision_of(precision: jax.lax.PrecisionLike) -> jax.lax.PrecisionLike:
    """`precision`, or what `jax.default_matmul_precision` says now, when a program is traced."""
    return jax.config.jax_default_matmul_precision if precision is None else precision
