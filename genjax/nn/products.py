"""Products of two arrays over any of their indices, as one bilinear primitive."""

from __future__ import annotations

import string
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from genjax.nn.bilinear import bilinear, differentiated, precision_of
from genjax.nn.cpu import onednn
from genjax.nn.cpu import products as cpu


def contraction(
    spec: str,
    x: Float[Array, "..."],
    y: Float[Array, "..."],
    *,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "..."]:
    """`jnp.einsum(spec, x, y)`, accumulated and returned in float32 (float64 of float64).

    Its derivatives cast the cotangent to x's dtype, so that with bfloat16 operands all products run
    on the matrix units (TPU, GPU, AMX); JAX's own rule would mix float32 and bfloat16. A y of a
    wider dtype is rounded to x's; its gradient is not.

    Args:
      spec: one letter per index, two operands and a result, without spaces; every index of an
        operand must be in the other operand or in the result.
      x: the first operand.
      y: the second.
      precision: of the product, as in `lax.dot_general`.

    Raises:
      TypeError: y has a narrower dtype than x.
      ValueError: the operands' axes do not match `spec`, or an index has different sizes.
    """
    return contraction_p.bind(x, y, spec=spec, precision=precision_of(precision))


def _terms(spec: str) -> tuple[str, str, str]:
    operands, out = spec.split("->")
    return (*operands.split(","), out)


def _result(x: Any, y: Any, *, spec: str, precision: Any) -> tuple[tuple[int, ...], jnp.dtype]:
    a, b, out = _terms(spec)
    sizes: dict[str, int] = {}
    for indices, array in ((a, x), (b, y)):
        if len(indices) != array.ndim:
            raise ValueError(f"{spec}: {indices} does not name the axes of {array.shape}")
        for index, size in zip(indices, array.shape, strict=True):
            if sizes.setdefault(index, size) != size:
                raise ValueError(f"{spec}: sizes of {index} differ in {x.shape} and {y.shape}")
    return tuple(sizes[index] for index in out), jnp.promote_types(x.dtype, jnp.float32)


def _standard(x: Array, y: Array, *, spec: str, precision: lax.PrecisionLike) -> Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(spec, x, y.astype(x.dtype), precision=precision, preferred_element_type=wide)


def _in_first(g: Array, x: Any, y: Array, *, spec: str, precision: Any) -> Array:
    a, b, out = _terms(spec)
    cotangent = contraction(f"{out},{b}->{a}", g.astype(x.aval.dtype), y, precision=precision)
    return cotangent.astype(x.aval.dtype)


def _in_second(g: Array, x: Array, y: Any, *, spec: str, precision: Any) -> Array:
    a, b, out = _terms(spec)
    cotangent = contraction(f"{out},{a}->{b}", g.astype(x.dtype), x, precision=precision)
    return cotangent.astype(y.aval.dtype)


def _batched(
    arrays: tuple[Array, Array], axes: tuple[int | None, int | None], *, spec: str, **parameters
) -> tuple[Array, int]:
    """The `vmap` rule: the batch is one more index."""
    a, b, out = _terms(spec)
    new = next(letter for letter in string.ascii_letters if letter not in spec)
    a, b = (
        indices if axis is None else indices[:axis] + new + indices[axis:]
        for indices, axis in zip((a, b), axes, strict=True)
    )
    return contraction(f"{a},{b}->{new}{out}", *arrays, **parameters), 0


contraction_p = bilinear(
    "contraction",
    result=_result,
    standard=_standard,
    cpu=cpu.contraction,
    onednn=onednn.contraction,
    mixed=True,
)
differentiated(contraction_p, in_first=_in_first, in_second=_in_second, batched=_batched)
