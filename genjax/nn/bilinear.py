"""Bilinear primitives: derivatives of every order, and one place that chooses how to compute.

A primitive is a function of two arrays that is linear in each. Its derivatives are products of the
same kind on every device; only the lowering depends on the device:

  accelerators   the standard operation of `jax.lax`, which their compilers optimise best
  one CPU        oneDNN's form, if `genjax.nn.cpu.onednn` is in use and supports it, else as below
  CPUs           a form of `genjax.nn.cpu` if that is faster, else the standard operation

The choice is made when a program is lowered for a platform, so `jax.export` to another platform
uses the form of that one. XLA can neither partition a call of oneDNN over a mesh nor export it, so
programs for several devices and exports use ordinary operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

Form = Callable[..., jax.Array]
PartialForm = Callable[..., jax.Array | None]


def bilinear(
    name: str,
    *,
    result: Callable,
    standard: Form,
    cpu: PartialForm,
    onednn: PartialForm,
    mixed: bool = False,
) -> Primitive:
    """A primitive of two arrays and static parameters; `differentiated` completes it.

    Args:
      name: as programs print it.
      result: (x, y, **parameters) -> shape and dtype, of abstract arrays.
      standard: (x, y, **parameters) -> array, by operations of `jax.lax`.
      cpu: the same for the CPU, or None for shapes and types for which `standard` is as fast.
      onednn: the same by oneDNN, or None if `cpu` is as fast or oneDNN is not in use.
      mixed: whether y may have a wider type than x. It is then rounded to x's type, but its
        derivative has y's type and is not rounded.
    """
    primitive = Primitive(name)

    def abstract(x: jax.core.ShapedArray, y: jax.core.ShapedArray, **parameters):
        if x.dtype != y.dtype and not (mixed and jnp.promote_types(x.dtype, y.dtype) == y.dtype):
            raise TypeError(f"{name} of {x.str_short()} and {y.str_short()}: cast one of them")
        shape, dtype = result(x, y, **parameters)
        replicated = x.sharding.update(spec=jax.P(*[None] * len(shape)))
        return x.update(shape=shape, dtype=dtype, sharding=replicated, weak_type=False)

    def on_cpu(x: jax.Array, y: jax.Array, *, closed: bool, **parameters) -> jax.Array:
        with jax.named_scope(name):  # its name in a profile
            for form in (onednn, cpu) if closed else (cpu,):
                output = form(x, y, **parameters)
                if output is not None:
                    return output
            return standard(x, y, **parameters)

    def lower_on_cpu(context: mlir.LoweringRuleContext, x: Any, y: Any, **parameters):
        form = partial(on_cpu, closed=_may_be_closed(context.module_context))
        return mlir.lower_fun(form, multiple_results=False)(context, x, y, **parameters)

    primitive.def_impl(partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(standard, multiple_results=False))
    mlir.register_lowering(primitive, lower_on_cpu, platform="cpu")
    return primitive


def _may_be_closed(context: mlir.ModuleContext) -> bool:
    """Whether the program is for one device, and not for export."""
    devices = getattr(context.axis_context, "num_devices", 0)
    return devices == 1 and not context.lowering_parameters.for_export


def differentiated(
    primitive: Primitive, *, in_first: Callable, in_second: Callable, batched: Callable
) -> None:
    """Registers a primitive's transposes, which give all derivatives, and its rule for `vmap`.

    Args:
      primitive: made by `bilinear`.
      in_first: (cotangent, x, y, **parameters) -> cotangent of x; of x only `aval` is known.
      in_second: the same for y.
      batched: (arrays, batch axes, **parameters) -> array, batch axis; an axis is None if its array
        has no batch axis, which is true of at most one of them.
    """
    ad.defbilinear(primitive, in_first, in_second)
    batching.primitive_batchers[primitive] = batched


def precision_of(precision: jax.lax.PrecisionLike) -> jax.lax.PrecisionLike:
    """`precision`, or, if None, `jax.default_matmul_precision` at the time of tracing."""
    return jax.config.jax_default_matmul_precision if precision is None else precision
