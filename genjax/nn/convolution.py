"""Strided convolution and its transposes, to any order of derivative.

A 2D convolution is linear in its image and in its kernel. With its two transposes it makes a
closed family: the derivatives of any member are members again.

  convolve(x, w)     y[i] = sum_t x[s i + t - pad] w[t]       "SAME" padding, stride s
  spread(g, w)       its transpose in x: the gradient of the image; a transposed convolution
  correlate(x, g)    its transpose in w: the gradient of the kernel

Left to itself JAX differentiates a transposed convolution, and the gradient of a strided one,
into convolutions dilated on both sides. XLA has no fast form of those on the CPU: the two gradients
of a transposed convolution of 64 to 128 channels take 18 to 27 times as long as here
(benchmarks/convolution.py). A gradient penalty needs them even of a critic without transposed
convolutions. Reverse mode only, like `layers.product`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def dot(x: Float[Array, "*B D"], kernel: Float[Array, "D F"]) -> Float[Array, "*B F"]:
    """`x @ kernel` over the last axis of x, float32 (float64 of float64)."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return lax.dot_general(
        x, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=wide
    )


def _plain(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k C F"], stride: int
) -> Float[Array, "B h w F"]:
    """Convolution with zeros around the image so that h = ceil(H / stride), in x's dtype."""
    return _plain(x, kernel, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def spread(
    g: Float[Array, "B h w F"], kernel: Float[Array, "k k C F"], stride: int, size: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """The transpose of `convolve` in its image of `size` (H, W), in g's dtype.

    With a stride, on the CPU, by sub-pixel phases: see `phases`.
    """

    def plain(g: Array, kernel: Array) -> Array:
        image = jax.ShapeDtypeStruct((len(g), *size, kernel.shape[2]), g.dtype)
        return jax.linear_transpose(lambda x: _plain(x, kernel, stride), image)(g)[0]

    if stride == 1:  # written out, because of loops and branches: see `swapped`
        low = (len(kernel) - 1) // 2
        return lax.conv_general_dilated(
            g,
            kernel[::-1, ::-1].swapaxes(2, 3),
            (1, 1),
            [(len(kernel) - 1 - low, low)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    return lax.platform_dependent(
        g, kernel, cpu=partial(phases, stride=stride, size=size), default=plain
    )


def phases(
    g: Float[Array, "B h w F"], kernel: Float[Array, "k k C F"], stride: int, size: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """`spread` as one matrix product and stride^2 sums of its shifted parts.

    Pixel s m + r of the padded image gets tap r + s a of pixel m - a of g, for each a: phase r,
    interleaved with the others at the end.
    """
    k, _, C, F = kernel.shape
    B, *small, _ = g.shape
    taps = dot(g, kernel.reshape(-1, F).T).astype(g.dtype).reshape(B, *small, k, k, C)
    most = -(-k // stride)  # taps of a phase along one axis

    def phase(r: int, c: int) -> Array:
        total = jnp.zeros((B, *(n + most - 1 for n in small), C), g.dtype)
        for a in range(most):
            for b in range(most):
                if r + stride * a < k and c + stride * b < k:
                    part = taps[:, :, :, r + stride * a, c + stride * b]
                    width = ((0, 0), (a, most - 1 - a), (b, most - 1 - b), (0, 0))
                    total = total + jnp.pad(part, width)
        return total

    rows = [jnp.stack([phase(r, c) for c in range(stride)], 3) for r in range(stride)]
    image = jnp.stack(rows, 2)  # [B, m, r, n, c, C]
    image = image.reshape(B, *(stride * (n + most - 1) for n in small), C)
    for axis, (n, full) in enumerate(zip(small, size, strict=True), start=1):
        low = max((n - 1) * stride + k - full, 0) // 2
        short = max(low + full - image.shape[axis], 0)
        image = jnp.pad(image, [(0, short if i == axis else 0) for i in range(4)])
        image = lax.slice_in_dim(image, low, low + full, axis=axis)
    return image


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def correlate(
    x: Float[Array, "B H W C"], g: Float[Array, "B h w F"], stride: int, taps: int
) -> Float[Array, "k k C F"]:
    """The transpose of `convolve` in its kernel of `taps` x `taps`, in x's dtype.

    On the CPU as a convolution of transposed arrays: see `swapped`.
    """

    def plain(x: Array, g: Array) -> Array:
        kernel = jax.ShapeDtypeStruct((taps, taps, x.shape[-1], g.shape[-1]), x.dtype)
        return jax.linear_transpose(lambda w: _plain(x, w, stride), kernel)(g)[0]

    return lax.platform_dependent(
        x, g, cpu=partial(swapped, stride=stride, taps=taps), default=plain
    )


def swapped(
    x: Float[Array, "B H W C"], g: Float[Array, "B h w F"], stride: int, taps: int
) -> Float[Array, "k k C F"]:
    """`correlate` as a convolution of x over g, with examples for channels and the reverse.

    XLA itself does so outside of loops and branches; inside of them its CPU compiler leaves the
    kernel's gradient in a form that takes 10 to 20 times as long.
    """
    total = [
        max((n - 1) * stride + taps - full, 0)
        for n, full in zip(g.shape[1:3], x.shape[1:3], strict=True)
    ]
    found = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (1, 1),
        [(t // 2, t - t // 2) for t in total],
        rhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return found[:, :taps, :taps].transpose(1, 2, 0, 3)


convolve.defvjp(
    lambda x, w, s: (convolve(x, w, s), (x, w)),
    lambda s, xw, g: (
        spread(g, xw[1], s, xw[0].shape[1:3]),
        correlate(xw[0], g, s, xw[1].shape[0]),
    ),
)
spread.defvjp(
    lambda g, w, s, size: (spread(g, w, s, size), (g, w)),
    lambda s, size, gw, x: (convolve(x, gw[1], s), correlate(x, gw[0], s, gw[1].shape[0])),
)
correlate.defvjp(
    lambda x, g, s, taps: (correlate(x, g, s, taps), (x, g)),
    lambda s, taps, xg, w: (spread(xg[1], w, s, xg[0].shape[1:3]), convolve(xg[0], w, s)),
)
