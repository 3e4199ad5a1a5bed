"""Contractions on the CPU."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def contraction(
    x: Float[Array, "..."], y: Float[Array, "..."], *, spec: str, precision: lax.PrecisionLike
) -> Float[Array, "..."] | None:
    """A bfloat16 contraction in the form of the matrix units: an operand's last indices are summed.

    XLA computes other products, such as gradients of parameters, in float32, which takes twice the
    time. So the smaller operand is transposed. XLA decides by its layout, which a transpose does
    not change but a reshape does; barriers keep XLA from removing both. Another barrier keeps XLA
    from merging a transpose of the result into the product, which its runtime would then refuse;
    for the same reason the product's result has its indices in the natural order.
    """
    if x.dtype != jnp.bfloat16:
        return None
    y = y.astype(x.dtype)
    operands, out = spec.split("->")
    a, b = operands.split(",")
    if a[-1] in out and (b[-1] not in out or x.size > y.size):
        x, y, a, b = y, x, b, a
    if a[-1] in out:
        rows = "".join(sorted(a, key=lambda index: index not in out))
        x, a = lax.optimization_barrier(x.transpose([a.index(index) for index in rows])), rows
        x = lax.squeeze(lax.optimization_barrier(jnp.expand_dims(x, 0)), [0])
    shared = [index for index in a if index in b and index in out]
    order = "".join(dict.fromkeys(index for index in (*shared, *a, *b) if index in out))
    result = jnp.einsum(
        f"{a},{b}->{order}", x, y, precision=precision, preferred_element_type=jnp.float32
    )
    return lax.optimization_barrier(result).transpose([order.index(index) for index in out])
