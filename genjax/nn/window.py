"""How a kernel goes over an image."""

from __future__ import annotations

from typing import NamedTuple

from jax import lax

Shape = tuple[int, ...]


class Window(NamedTuple):
    """How a kernel goes over an image.

    Attributes:
      strides: along each axis of space.
      padding: zeros before and after the image along each of them; fewer than 0 cut it off.
      dilation: from one tap of the kernel to the next.
      groups: parts of the channels that do not see each other, in order.
    """

    strides: Shape
    padding: tuple[tuple[int, int], ...]
    dilation: Shape
    groups: int = 1


def window_of(
    size: Shape, taps: Shape, strides: Shape, padding: str = "SAME", groups: int = 1
) -> Window:
    """A window without gaps.

    Args:
      size: of the image's axes of space.
      taps: the same of the kernel.
      strides: the same.
      padding: "SAME" for a result of ceil(size / stride), with no more zeros at the start than at
        the end, or "VALID" for none.
      groups: of the channels.
    """
    sides = lax.padtype_to_pads(size, taps, strides, padding)
    return Window(tuple(strides), tuple(map(tuple, sides)), (1,) * len(strides), groups)


def result_size(size: Shape, taps: Shape, window: Window) -> Shape:
    """The axes of space of a convolution's result."""
    return tuple(
        (n + low + high - d * (k - 1) - 1) // s + 1
        for n, k, s, (low, high), d in zip(
            size, taps, window.strides, window.padding, window.dilation, strict=True
        )
    )


def channels_last(rank: int) -> lax.ConvDimensionNumbers:
    """Images [B, *space, C] and kernels [*k, C, F] of so many axes."""
    space = range(1, rank - 1)
    image, kernel = (0, rank - 1, *space), (rank - 1, rank - 2, *range(rank - 2))
    return lax.ConvDimensionNumbers(image, kernel, image)
