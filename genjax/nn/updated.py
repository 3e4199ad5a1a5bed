"""Kernels with a low-rank update that is applied beside them (Hu et al. 2022, eq. 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from genjax.nn.products import contraction


@partial(jax.tree_util.register_dataclass, data_fields=["kernel", "a", "b"], meta_fields=["scale"])
@dataclass(frozen=True)
class Updated:
    """A kernel W with its update scale A B, in the place of an array in the parameters.

    `product` and `contract` of `nn.layers` compute x W + scale (x A) B: no gradient of W is needed,
    and no array of its size. To operators and functions of `jax.numpy` it is the sum W + scale A B.
    Those of `jax.lax` and `jax.tree` see its three arrays: they need `summed`.

    Attributes:
      kernel: W [I, *outputs].
      a: A [I, R].
      b: B [R, *outputs].
      scale: the factor.
    """

    kernel: Float[Array, "I ..."]
    a: Float[Array, "I R"]
    b: Float[Array, "R ..."]
    scale: float

    def contracted(self, spec: str, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`contraction(spec, x, W + scale A B)`.

        It is applied beside W if the first axis of W, and no other, is summed over.
        """
        (of_x, of_kernel), out = spec.split("->")[0].split(","), spec.split("->")[1]
        if any((axis in of_x) != (axis == of_kernel[0]) for axis in of_kernel):
            return contraction(spec, x, self.full())
        inner, (rank, *_) = of_kernel[0], (c for c in "zyxwvu" if c not in spec)
        narrow = of_x.replace(inner, rank)
        down = contraction(f"{of_x},{inner}{rank}->{narrow}", x, self.a).astype(x.dtype)
        up = contraction(f"{narrow},{rank}{of_kernel[1:]}->{out}", down, self.b)
        return contraction(spec, x, self.kernel) + self.scale * up

    def full(self) -> Float[Array, "I ..."]:
        """W + scale A B."""
        rows = self.b.reshape(len(self.b), -1)
        update = jnp.matmul(self.a, rows, precision=lax.Precision.HIGHEST)
        return self.kernel + (self.scale * update).reshape(self.kernel.shape)

    def reshape(self, *shape: int) -> Updated | Array:
        """The axes of the results as one, without leaving this form; otherwise the sum's."""
        if shape != (len(self), -1):
            return self.full().reshape(*shape)
        kernel, b = (x.reshape(len(x), math.prod(x.shape[1:])) for x in (self.kernel, self.b))
        return replace(self, kernel=kernel, b=b)

    def astype(self, dtype: Any) -> Updated:
        """The same with W of another type; A and B are rounded in products."""
        return replace(self, kernel=self.kernel.astype(dtype))

    def __len__(self) -> int:
        """Its number of rows."""
        return len(self.kernel)

    def __getitem__(self, index: Any) -> Updated | Array:
        """Itself for `[...]`; else a part of the sum."""
        return self if isinstance(index, EllipsisType) else self.full()[index]

    def __getattr__(self, name: str) -> Any:
        """What it lacks is an attribute of W if it describes an array, or else of the sum."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.kernel if name in ("shape", "ndim", "dtype") else self.full(), name)

    def __iter__(self) -> Iterator[Array]:
        """The rows of the sum."""
        return iter(self.full())

    def __jax_array__(self) -> Array:
        """The sum, for functions of JAX."""
        return self.full()


def summed(kernel: Array | Updated) -> Array:
    """The kernel with its update, if it has one."""
    return kernel.full() if isinstance(kernel, Updated) else kernel


def _of_the_sum(name: str) -> Any:
    return lambda self, *others: getattr(self.full(), name)(*others)


_BINARY = ("add", "sub", "mul", "truediv", "pow", "matmul")
for _name in (*_BINARY, *(f"r{name}" for name in _BINARY), "neg", "abs"):
    setattr(Updated, f"__{_name}__", _of_the_sum(f"__{_name}__"))
