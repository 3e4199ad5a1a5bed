"""Convolution and its transposes, as bilinear primitives, to any order of derivative.

A convolution is linear in its image and in its kernel. With its two transposes it forms a closed
family: the derivatives of a member are members.

  convolution(x, w)       y[i] = sum_t x[s i + d t - low] w[t]    stride s, dilation d, padding low
  image_gradient(g, w)    its transpose in x: the gradient of the image; a transposed convolution
  kernel_gradient(x, g)   its transpose in w: the gradient of the kernel

JAX's own derivatives of a transposed convolution, and of the gradient of a strided one, are
convolutions dilated on both sides. XLA has no fast form of these on the CPU: the two gradients of a
transposed convolution of 64 to 128 channels take 18 to 27 times as long as here
(benchmarks/convolution.py). A gradient penalty needs them even if the critic has no transposed
convolutions. Here each is a member with a form of its own in `genjax.nn.cpu.convolution`.

Arrays have channels last and any number of spatial axes. `convolve`, `spread` and `correlate` are
the members with equal strides and zero padding that keeps the image's size at stride 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from genjax.nn.bilinear import bilinear, differentiated, precision_of
from genjax.nn.cpu import convolution as cpu
from genjax.nn.cpu import onednn
from genjax.nn.window import (
    Shape,
    Window,
    channels_last,
    kernel_padding,
    result_size,
    window_of,
)


def convolution(
    x: Float[Array, "B *space C"],
    kernel: Float[Array, "*k c F"],
    window: Window,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "B *small F"]:
    """`lax.conv_general_dilated` with channels last, in x's dtype; c = C / groups.

    A kernel of a wider dtype is rounded to x's; its gradient is not.

    Raises:
      TypeError: the kernel has a narrower dtype than x.
      ValueError: the channels or numbers of axes do not match.
    """
    return convolution_p.bind(x, kernel, window=window, precision=precision_of(precision))


def image_gradient(
    g: Float[Array, "B *small F"],
    kernel: Float[Array, "*k c F"],
    window: Window,
    size: Shape,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "B *space C"]:
    """The transpose of `convolution` in its image of `size`, in g's dtype.

    Raises:
      TypeError: the kernel has a narrower dtype than g.
      ValueError: the convolution of such an image does not have g's shape.
    """
    return image_gradient_p.bind(
        g, kernel, window=window, size=tuple(size), precision=precision_of(precision)
    )


def kernel_gradient(
    x: Float[Array, "B *space C"],
    g: Float[Array, "B *small F"],
    window: Window,
    taps: Shape,
    precision: lax.PrecisionLike = None,
    dtype: jnp.dtype | None = None,
) -> Float[Array, "*k c F"]:
    """The transpose of `convolution` in its kernel of `taps` and `dtype`, by default x's.

    Raises:
      TypeError: x and g have different dtypes.
      ValueError: the convolution with such a kernel does not have g's shape.
    """
    return kernel_gradient_p.bind(
        x,
        g,
        window=window,
        taps=tuple(taps),
        precision=precision_of(precision),
        dtype=jnp.dtype(x.dtype if dtype is None else dtype),
    )


def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k C F"], stride: int
) -> Float[Array, "B h w F"]:
    """Convolution with zero padding so that h = ceil(H / stride), in x's dtype."""
    return convolution(x, kernel, window_of(x.shape[1:3], kernel.shape[:2], (stride, stride)))


def spread(
    g: Float[Array, "B h w F"], kernel: Float[Array, "k k C F"], stride: int, size: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """The transpose of `convolve` in its image of `size` (H, W), in g's dtype."""
    return image_gradient(g, kernel, window_of(size, kernel.shape[:2], (stride, stride)), size)


def correlate(
    x: Float[Array, "B H W C"], g: Float[Array, "B h w F"], stride: int, taps: int
) -> Float[Array, "k k C F"]:
    """The transpose of `convolve` in its kernel of `taps` x `taps`, in x's dtype."""
    window = window_of(x.shape[1:3], (taps, taps), (stride, stride))
    return kernel_gradient(x, g, window, (taps, taps))


def _check(operation: str, window: Window, x: Shape, kernel: Shape, g: Shape) -> None:
    """Raises ValueError unless x and the kernel have a convolution of shape g."""
    channels = x[-1] == kernel[-2] * window.groups and kernel[-1] % window.groups == 0
    axes = len(x) == len(kernel) == len(window.strides) + 2
    if not (
        axes and channels and (x[0], *result_size(x[1:-1], kernel[:-2], window), kernel[-1]) == g
    ):
        raise ValueError(
            f"{operation}: image {x}, kernel {kernel} and result {g} do not fit {window}"
        )


def _convolution_result(x: Any, w: Any, *, window: Window, **_) -> tuple[Shape, Any]:
    if x.ndim != w.ndim:
        raise ValueError(f"convolution of an image {x.shape} with a kernel {w.shape}")
    shape = (x.shape[0], *result_size(x.shape[1:-1], w.shape[:-2], window), w.shape[-1])
    _check("convolution", window, x.shape, w.shape, shape)
    return shape, x.dtype


def _image_result(g: Any, w: Any, *, window: Window, size: Shape, **_) -> tuple[Shape, Any]:
    shape = (g.shape[0], *size, w.shape[-2] * window.groups)
    _check("gradient of an image", window, shape, w.shape, g.shape)
    return shape, g.dtype


def _kernel_result(
    x: Any, g: Any, *, window: Window, taps: Shape, dtype: Any, **_
) -> tuple[Shape, Any]:
    shape = (*taps, x.shape[-1] // window.groups, g.shape[-1])
    _check("gradient of a kernel", window, x.shape, shape, g.shape)
    return shape, dtype


def _convolution(x: Array, w: Array, *, window: Window, precision: Any) -> Array:
    return lax.conv_general_dilated(
        x,
        w.astype(x.dtype),
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=channels_last(x.ndim),
        feature_group_count=window.groups,
        precision=precision,
    )


def _image_gradient(g: Array, w: Array, *, size: Shape, window: Window, precision: Any) -> Array:
    image = jax.ShapeDtypeStruct((len(g), *size, w.shape[-2] * window.groups), g.dtype)
    forward = partial(_convolution, w=w, window=window, precision=precision)
    return jax.linear_transpose(forward, image)(g)[0]


def _kernel_gradient(
    x: Array, g: Array, *, taps: Shape, window: Window, precision: Any, dtype: Any
) -> Array:
    """A convolution of x with g that exchanges examples and channels.

    The transpose that JAX derives would round the gradient to x's type.
    """
    rank, space = x.ndim - 2, tuple(range(1, x.ndim - 1))
    gradient = lax.conv_general_dilated(
        x,
        g,
        window.dilation,
        kernel_padding(x.shape[1:-1], g.shape[1:-1], taps, window),
        rhs_dilation=window.strides,
        dimension_numbers=lax.ConvDimensionNumbers(
            (rank + 1, 0, *space), (rank + 1, 0, *space), (rank, rank + 1, *range(rank))
        ),
        batch_group_count=window.groups,
        precision=precision,
        preferred_element_type=dtype,
    )
    return gradient[tuple(slice(k) for k in taps)]


def _batched(bind: Callable, first: tuple[int, int], second: tuple[int, int], both: tuple) -> Any:
    """The `vmap` rule of a member.

    Args:
      bind: the member.
      first: (axis of the first array into which its batch is folded, axis of the result from which
        it is unfolded) if only the first array has a batch.
      second: the same if only the second array has a batch.
      both: (axis of the first, axis of the second, axis of the result) if both have a batch: axes
        of channels, because the batch becomes groups.
    """

    def rule(arrays: tuple, axes: tuple, *, window: Window, **parameters) -> tuple[Array, int]:
        batch = next(
            a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None
        )
        arrays = [
            a if axis is None else jnp.moveaxis(a, axis, 0)
            for a, axis in zip(arrays, axes, strict=True)
        ]
        folding = first if axes[1] is None else second if axes[0] is None else None
        if folding is not None and (folding[0] == 0 or window.groups == 1):
            index = 0 if axes[1] is None else 1
            arrays[index] = _folded(arrays[index], folding[0])
            out = folding[1]
        else:
            arrays = [
                jnp.broadcast_to(a, (batch, *a.shape)) if axis is None else a
                for a, axis in zip(arrays, axes, strict=True)
            ]
            arrays = [_folded(a, axis) for a, axis in zip(arrays, both, strict=False)]
            window, out = window._replace(groups=window.groups * batch), both[2]
        result = bind(*arrays, window=window, **parameters)
        axis = out % result.ndim
        shape = result.shape
        return result.reshape(*shape[:axis], batch, -1, *shape[axis + 1 :]), axis

    return rule


def _folded(a: Array, axis: int) -> Array:
    """Merges the first axis of a into axis `axis` of the remaining axes."""
    axis %= a.ndim - 1
    a = jnp.moveaxis(a, 0, axis)
    return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])


convolution_p = bilinear(
    "convolution",
    result=_convolution_result,
    standard=_convolution,
    cpu=cpu.convolution,
    onednn=onednn.convolution,
    mixed=True,
)
image_gradient_p = bilinear(
    "image_gradient",
    result=_image_result,
    standard=_image_gradient,
    cpu=cpu.image_gradient,
    onednn=onednn.image_gradient,
    mixed=True,
)
kernel_gradient_p = bilinear(
    "kernel_gradient",
    result=_kernel_result,
    standard=_kernel_gradient,
    cpu=cpu.kernel_gradient,
    onednn=onednn.kernel_gradient,
)


def _gradient_of(w: Any, x: Array, g: Array, **parameters) -> Array:
    return kernel_gradient(x, g, taps=w.aval.shape[:-2], dtype=w.aval.dtype, **parameters)


differentiated(
    convolution_p,
    in_first=lambda g, x, w, **p: image_gradient(g, w, size=x.aval.shape[1:-1], **p),
    in_second=lambda g, x, w, **p: _gradient_of(w, x, g, **p),
    batched=_batched(convolution, (0, 0), (-1, -1), (-1, -1, -1)),
)
differentiated(
    image_gradient_p,
    in_first=lambda x, g, w, size, **p: convolution(x, w, **p),
    in_second=lambda x, g, w, size, **p: _gradient_of(w, x, g, **p),
    batched=_batched(image_gradient, (0, 0), (-2, -1), (-1, -1, -1)),
)
differentiated(
    kernel_gradient_p,
    in_first=lambda w, x, g, taps, dtype, **p: image_gradient(g, w, size=x.aval.shape[1:-1], **p),
    in_second=lambda w, x, g, taps, dtype, **p: convolution(x, w, **p),
    batched=_batched(kernel_gradient, (-1, -2), (-1, -1), (-1, -1, -1)),
)
