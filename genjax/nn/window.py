"""The window of a convolution: strides, padding, dilation and groups."""

from __future__ import annotations

from typing import NamedTuple

from jax import lax

Shape = tuple[int, ...]


class Window(NamedTuple):
    """How a kernel moves over an image.

    Attributes:
      strides: along each spatial axis.
      padding: zeros before and after the image along each spatial axis; negative numbers crop it.
      dilation: distance between neighbouring taps of the kernel along each spatial axis.
      groups: number of channel groups, in order, which are convolved separately.
    """

    strides: Shape
    padding: tuple[tuple[int, int], ...]
    dilation: Shape
    groups: int = 1


def window_of(
    size: Shape, taps: Shape, strides: Shape, padding: str = "SAME", groups: int = 1
) -> Window:
    """A window without dilation.

    Args:
      size: of the image's spatial axes.
      taps: of the kernel's spatial axes.
      strides: along each spatial axis.
      padding: "SAME" for a result of ceil(size / stride), with no more zeros at the start than at
        the end, or "VALID" for none.
      groups: number of channel groups.
    """
    sides = lax.padtype_to_pads(size, taps, strides, padding)
    return Window(tuple(strides), tuple(map(tuple, sides)), (1,) * len(strides), groups)


def result_size(size: Shape, taps: Shape, window: Window) -> Shape:
    """The spatial size of a convolution's result."""
    return tuple(
        (n + low + high - d * (k - 1) - 1) // s + 1
        for n, k, s, (low, high), d in zip(
            size, taps, window.strides, window.padding, window.dilation, strict=True
        )
    )


def kernel_padding(size: Shape, small: Shape, taps: Shape, window: Window) -> list[tuple[int, int]]:
    """The padding of an image of `size` for a kernel's gradient from a result of size `small`.

    The gradient is a convolution of the two with strides and dilation exchanged. Where it reaches
    further than the taps, what lies behind them is to be cut off.
    """
    padding = []
    for n, m, k, (low, _), s, d in zip(
        size, small, taps, window.padding, window.strides, window.dilation, strict=True
    ):
        reach = (k - 1) * d + (m - 1) * s + 1  # size of an image that the result and all taps cover
        padding.append((low, max(reach - n - low, 0)))
    return padding


def channels_last(rank: int) -> lax.ConvDimensionNumbers:
    """Dimension numbers of images [B, *space, C] and kernels [*k, C, F] with `rank` axes."""
    space = range(1, rank - 1)
    image, kernel = (0, rank - 1, *space), (rank - 1, rank - 2, *range(rank - 2))
    return lax.ConvDimensionNumbers(image, kernel, image)
