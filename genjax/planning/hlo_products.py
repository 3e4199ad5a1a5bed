"""The products and convolutions of a compiled program (HLO)."""

from __future__ import annotations

import functools
import json
import math
import re

import numpy as np

from genjax.planning import hlo_text as text_of
from genjax.planning.hlo_text import Body, Instruction, sizes

# Targets of calls that make no products.
PLAIN = {
    *("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "Sharding", "SliceId"),
    *("AsyncCollectiveStart", "AsyncCollectiveDone", "GatherScatterIndicesBitpacked", "TopK"),
    *("PadToStatic", "SliceToDynamic", "annotate_device_placement", "cu_threefry2x32"),
}


def flops(i: Instruction, body: Body) -> float | None:
    """The FLOPs of an instruction's products; None of a call of which nothing is known.

    Of a convolution, products with the zeros around its image are left out, as are those with the
    zeros between its pixels: compilers for TPUs write products with batches so.
    """
    if i.opcode == "dot":
        left = sizes(body[i.operands[0]].shape)
        summed = text_of.numbers(i.rest, "lhs_contracting_dims")
        return 2.0 * math.prod(sizes(i.shape)) * math.prod(left[axis] for axis in summed)
    if i.opcode == "convolution":
        return 2.0 * _convolution(i, body)
    return _library(i, body) if i.opcode == "custom-call" else 0.0


def _convolution(i: Instruction, body: Body) -> int:
    """The products of a convolution, without those with zeros that it puts into its image."""
    left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest).groups()
    image, kernel = (sizes(body[name].shape) for name in i.operands[:2])
    result = sizes(i.shape)
    window = re.search(r"window=\{([^}]*)\}", i.rest)
    window = dict(part.split("=") for part in window[1].split()) if window else {}
    products = kernel[right.index("i")] * result[out.index("b")] * result[out.index("f")]
    space = sorted(letter for letter in out if letter.isdigit())

    def each(name: str, default: int) -> list[int]:
        written = window.get(name)
        return [int(n) for n in written.split("x")] if written else [default] * len(space)

    low = [int(n.split("_")[0]) for n in window["pad"].split("x")] if "pad" in window else None
    for axis, letter in enumerate(space):
        products *= _pairs(
            result[out.index(letter)],
            kernel[right.index(letter)],
            image[left.index(letter)],
            each("stride", 1)[axis],
            each("rhs_dilate", 1)[axis],
            each("lhs_dilate", 1)[axis],
            low[axis] if low else 0,
        )
    return products


@functools.cache
def _pairs(
    size: int, taps: int, pixels: int, stride: int, step: int, dilation: int, low: int
) -> int:
    """The pairs of a result and a tap that meet a pixel along an axis."""
    count, last = 0, (pixels - 1) * dilation
    for tap in range(taps):
        first = tap * step - low  # the place that this tap has for the first result
        begin = max(0, -(first // stride))
        end = min(size - 1, (last - first) // stride)
        if begin > end:
            continue
        if dilation == 1:
            count += end - begin + 1
        else:
            places = first + stride * np.arange(begin, end + 1)
            count += int(np.count_nonzero(places % dilation == 0))
    return count


def _library(i: Instruction, body: Body) -> float | None:
    """The FLOPs of a call of cuBLAS or cuDNN; None of another one that may make products."""
    target = text_of.target(i)
    config = i.rest.partition("backend_config=")[2]
    result = sizes(text_of.elements(i.shape)[0])
    if target.startswith("__cublas$"):
        dimensions = json.loads(_braces(config[config.index('"dot_dimension_numbers":') :]))
        summed = dimensions.get("lhs_contracting_dimensions", [])
        left = sizes(body[i.operands[0]].shape)
        return 2.0 * math.prod(result) * math.prod(left[int(a)] for a in summed)
    if target.startswith("__cudnn$conv"):
        first, second = (sizes(body[name].shape) for name in i.operands[:2])
        output, kernel = {
            "__cudnn$convBackwardInput": (first, second),
            "__cudnn$convBackwardFilter": (second, result),
        }.get(target, (result, second))
        labels = re.search(r"dim_labels=(\w+)_(\w+)->", i.rest)[2]
        products = math.prod(output) * math.prod(kernel) // kernel[labels.index("o")]
        return 2.0 * products
    if target.startswith("__cudnn$fmha"):
        shape = json.loads(_braces(config[config.index('"intermediate_tensor_shape":') :]))
        scores = math.prod(int(n) for n in shape["dimensions"])
        if '"CAUSAL"' in config or '"PADDING_CAUSAL"' in config:
            T, S = (int(n) for n in shape["dimensions"][-2:])
            scores = scores // (T * S) * int(np.minimum(np.arange(1, T + 1), S).sum())
        width = sizes(body[i.operands[0]].shape)[-1]
        return 2.0 * scores * width * (5 if "Backward" in target else 2)
    return 0.0 if target in PLAIN else None


def _braces(text: str) -> str:
    """The first object in braces of a text."""
    start = text.index("{")
    depth = 0
    for at in range(start, len(text)):
        depth += text[at] == "{"
        depth -= text[at] == "}"
        if depth == 0:
            return text[start : at + 1]
    raise ValueError(f"a brace that does not close: {text[:80]!r}")
