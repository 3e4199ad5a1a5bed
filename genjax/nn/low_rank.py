"""Low-rank updates of kernels: LoRA (Hu et al. 2022) and DoRA (Liu et al. 2024).

A kernel is the matrix W [inputs, outputs] of a linear map. Its update is the product of A [inputs,
R] and B [R, outputs]. The inputs of a convolution are its flattened window, k k in; the outputs of
`heads.QueryKeyValue` are K heads of f columns. A stack of kernels, one per block, has an A and a B
per block.
"""

from __future__ import annotations

import math
import re
import string
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from genjax.nn.heads import BY_HEAD

Factors = dict[str, Array]  # "a", "b" and, for DoRA, "magnitude"


class Layout(NamedTuple):
    """What the axes of a kernel are, in this order.

    Attributes:
      stack: sizes of the axes of a stack over depth.
      inputs: sizes of the axes that are summed over.
      outputs: sizes of the axes of the results.
    """

    stack: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def sides(self) -> tuple[int, int]:
        """The sides of the matrix."""
        return math.prod(self.inputs), math.prod(self.outputs)

    def shapes(self, rank: int, kind: str) -> dict[str, tuple[int, ...]]:
        """The shapes of the factors."""
        shapes = {
            "a": (*self.stack, *self.inputs, rank),
            "b": (*self.stack, rank, *self.outputs),
        }
        return shapes | {"magnitude": self.stack + self.outputs} if kind == "dora" else shapes


def stacked(path: str) -> bool:
    """Whether a parameter is stacked over blocks that a scan runs through, by its path.

    `blocks/up/kernel` is, and `blocks/0/up/kernel` is not.
    """
    return bool(re.search(r"(^|/)(blocks|layers)/(?!\d+/)", path))


def layout(path: str, shape: tuple[int, ...]) -> Layout | None:
    """The layout of a parameter, from its path and shape; None if it is not a matrix."""
    heads = 1 + bool(BY_HEAD.search(path))
    first, last = int(stacked(path)), len(shape) - heads
    if last <= first:
        return None
    return Layout(shape[:first], shape[first:last], shape[last:])


def begin(key: Array, found: Layout, rank: int, kind: str) -> Factors:
    """The factors of an update that is zero: A is uniform, B is zero.

    A is uniform within 1 / sqrt(inputs), as in peft. The magnitude is stored as its difference from
    the kernel's own, so it is zero too, and does not depend on the kernel.
    """
    factors = {n: jnp.zeros(shape, jnp.float32) for n, shape in found.shapes(rank, kind).items()}
    bound = 1 / math.sqrt(found.sides[0])
    factors["a"] = jax.random.uniform(key, factors["a"].shape, jnp.float32, -bound, bound)
    return factors


def update(found: Layout, factors: Factors, scale: float) -> Float[Array, "..."]:
    """scale A B, in the shape of the kernel."""
    letters = iter(string.ascii_letters)
    stack, inputs, outputs = ("".join(next(letters) for _ in sizes) for sizes in found)
    rank = next(letters)
    spec = f"{stack}{inputs}{rank},{stack}{rank}{outputs}->{stack}{inputs}{outputs}"
    product = jnp.einsum(spec, factors["a"], factors["b"], precision=lax.Precision.HIGHEST)
    return scale * product


def lengths(found: Layout, kernel: Float[Array, "..."]) -> Float[Array, "..."]:
    """The length of the weights of each output [*stack, *outputs]."""
    first = len(found.stack)
    axes = tuple(range(first, first + len(found.inputs)))
    return jnp.sqrt(jnp.square(kernel).sum(axes))


def merged(
    found: Layout, kernel: Float[Array, "..."], factors: Factors, scale: float
) -> Float[Array, "..."]:
    """The kernel with its update: W + scale A B, or for DoRA that with each output rescaled.

    DoRA: V (m / |V|) with V = W + scale A B and |V| the length of each output's weights (eq. 5),
    which is a constant for the gradient (section 4.3); m is |W| plus the stored difference. With B
    and the difference zero, this is W exactly.
    """
    total = kernel + update(found, factors, scale)
    if "magnitude" not in factors:
        return total
    magnitude = lengths(found, kernel) + factors["magnitude"]
    now = lax.stop_gradient(lengths(found, total))
    ratio = jnp.where(now > 0, magnitude / jnp.where(now > 0, now, 1), 1)
    first = len(found.stack)
    axes = tuple(range(first, first + len(found.inputs)))
    return total * jnp.expand_dims(ratio, axes)
