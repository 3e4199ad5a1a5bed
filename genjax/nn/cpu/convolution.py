"""CPU forms of the members of the family in `genjax.nn.convolution`.

Each returns None for a window for which XLA's own form is as fast, or that it does not support.
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from genjax.nn.window import Window, channels_last, kernel_padding


def convolution(
    x: Float[Array, "B *space C"],
    kernel: Float[Array, "*k c F"],
    *,
    window: Window,
    precision: lax.PrecisionLike,
) -> Float[Array, "B *small F"] | None:
    """A depthwise convolution, as the sum over the kernel's taps of shifted images.

    It takes a fifth to a seventeenth of the time of XLA's grouped convolution. Sums are float32.
    """
    if not (1 < window.groups == x.shape[-1] == kernel.shape[-1]) or _cropped(window):
        return None
    del precision  # only applies to matrix products, which are not used here
    taps = kernel.shape[:-2]
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    kernel = kernel.astype(dtype).astype(wide)
    x = jnp.pad(x, [(0, 0), *window.padding, (0, 0)]).astype(wide)
    steps = list(zip(taps, window.strides, window.dilation, strict=True))
    ends = [
        (n - d * (k - 1) - 1) // s * s + 1
        for n, (k, s, d) in zip(x.shape[1:-1], steps, strict=True)
    ]

    def part(tap: tuple[int, ...]) -> Array:
        cut = tuple(
            slice(d * t, d * t + end, s) for t, end, (_, s, d) in zip(tap, ends, steps, strict=True)
        )
        return x[:, *cut] * kernel[*tap, 0]

    return sum(part(tap) for tap in itertools.product(*map(range, taps))).astype(dtype)


def image_gradient(
    g: Float[Array, "B *small F"],
    kernel: Float[Array, "*k C F"],
    *,
    window: Window,
    size: tuple[int, ...],
    precision: lax.PrecisionLike,
) -> Float[Array, "B *space C"] | None:
    """The image's gradient: with a stride by sub-pixel phases, without one as a convolution.

    XLA has no fast form of a convolution that dilates its image. Inside loops and branches its CPU
    compiler keeps a form of the gradient at stride 1 that takes 10 to 50 times as long.
    """
    if window.groups != 1:
        return None
    kernel = kernel.astype(g.dtype)
    if all(s == 1 for s in window.strides):
        return _mirrored(g, kernel, window, size, precision)
    if all(d == 1 for d in window.dilation) and not _cropped(window):
        return _phases(g, kernel, window, size, precision)
    return None


def kernel_gradient(
    x: Float[Array, "B *space C"],
    g: Float[Array, "B *small F"],
    *,
    window: Window,
    taps: tuple[int, ...],
    precision: lax.PrecisionLike,
    dtype: jnp.dtype,
) -> Float[Array, "*k C F"] | None:
    """The kernel's gradient: a convolution of x with g that exchanges examples and channels.

    XLA itself does so outside loops and branches; inside them its CPU compiler keeps a form of the
    gradient that takes 10 to 20 times as long.
    """
    if window.groups != 1:
        return None
    space = range(1, x.ndim - 1)
    gradient = lax.conv_general_dilated(
        x.transpose(-1, *space, 0),
        g.transpose(*space, 0, -1),
        window.dilation,
        kernel_padding(x.shape[1:-1], g.shape[1:-1], taps, window),
        rhs_dilation=window.strides,
        dimension_numbers=channels_last(x.ndim),
        precision=precision,
        preferred_element_type=dtype,
    )
    gradient = gradient[:, *(slice(k) for k in taps)]
    return gradient.transpose(*space, 0, -1)


def _mirrored(
    g: Array, kernel: Array, window: Window, size: tuple[int, ...], precision: lax.PrecisionLike
) -> Array:
    padding = []
    for n, k, d, (low, _), full in zip(
        g.shape[1:-1], kernel.shape, window.dilation, window.padding, size, strict=False
    ):
        before = (k - 1) * d - low
        padding.append((before, full + (k - 1) * d - n - before))
    return lax.conv_general_dilated(
        g,
        lax.rev(kernel, range(len(size))).swapaxes(-1, -2),
        window.strides,
        padding,
        rhs_dilation=window.dilation,
        dimension_numbers=channels_last(g.ndim),
        precision=precision,
    )


def _phases(
    g: Array, kernel: Array, window: Window, size: tuple[int, ...], precision: lax.PrecisionLike
) -> Array:
    """One matrix product, then for each phase the sum of its shifted parts, in float32.

    Along an axis, pixel s m + r of the padded image is the sum over a of tap r + s a applied to
    pixel m - a of g. These pixels are phase r; the phases are interleaved at the end.
    """
    *taps, C, F = kernel.shape
    B, *small, _ = g.shape
    strides, rank = window.strides, len(size)
    matrix = kernel.reshape(-1, F).T
    wide = jnp.promote_types(g.dtype, jnp.float32)
    parts = lax.dot_general(
        g,
        matrix,
        (((g.ndim - 1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=wide,
    )
    parts = parts.reshape(B, *small, *taps, C)
    most = [-(-k // s) for k, s in zip(taps, strides, strict=True)]  # taps of a phase along an axis
    long = [n + m - 1 for n, m in zip(small, most, strict=True)]

    def phase(first: tuple[int, ...]) -> Array:
        total = jnp.zeros((B, *long, C), wide)
        for shift in itertools.product(*map(range, most)):
            tap = [r + s * a for r, s, a in zip(first, strides, shift, strict=True)]
            if all(t < k for t, k in zip(tap, taps, strict=True)):
                sides = [(a, m - 1 - a) for a, m in zip(shift, most, strict=True)]
                part = parts[:, *(slice(None),) * rank, *tap]
                total = total + jnp.pad(part, [(0, 0), *sides, (0, 0)])
        return total.astype(g.dtype)

    def interleaved(first: tuple[int, ...]) -> Array:
        """The phases that begin with `first`; each remaining axis is followed by its phases."""
        axis = len(first)
        if axis == rank:
            return phase(first)
        inner = [interleaved((*first, r)) for r in range(strides[axis])]
        return jnp.stack(inner, axis + 2)

    image = interleaved(())  # [B, m, r, n, c, ..., C]
    image = image.reshape(B, *(s * n for s, n in zip(strides, long, strict=True)), C)
    for axis, ((low, _), full) in enumerate(zip(window.padding, size, strict=True), start=1):
        short = max(low + full - image.shape[axis], 0)
        image = jnp.pad(image, [(0, short if i == axis else 0) for i in range(image.ndim)])
        image = lax.slice_in_dim(image, low, low + full, axis=axis)
    return image


def _cropped(window: Window) -> bool:
    return any(side < 0 for sides in window.padding for side in sides)
