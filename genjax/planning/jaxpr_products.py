"""The FLOPs of single operations of a program (jaxpr)."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var


def _shape(variable: Var | Literal) -> tuple[int, ...]:
    return variable.aval.shape


def _dot_general(equation: JaxprEqn) -> tuple[float, float]:
    (summed, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    return 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(left[i] for i in summed), 0.0


def _conv_general_dilated(equation: JaxprEqn) -> tuple[float, float]:
    p = equation.params
    numbers = p["dimension_numbers"]
    kernel, result = _shape(equation.invars[1]), _shape(equation.outvars[0])
    products = kernel[numbers.rhs_spec[1]]
    products *= result[numbers.out_spec[0]] * result[numbers.out_spec[1]]
    space = zip(
        (result[i] for i in numbers.out_spec[2:]),
        (kernel[i] for i in numbers.rhs_spec[2:]),
        p["window_strides"],
        p["rhs_dilation"],
        p["lhs_dilation"],
        (low for low, _ in p["padding"]),
        strict=True,
    )
    return 2.0 * products * math.prod(_pairs(*axis) for axis in space), 0.0


def _pairs(size: int, taps: int, stride: int, step: int, dilation: int, low: int) -> int:
    """The pairs of a result and a tap along an axis that do not fall between two pixels."""
    places = np.arange(size)[:, None] * stride + np.arange(taps) * step - low
    return int(np.count_nonzero(places % dilation == 0))


def _contraction(equation: JaxprEqn) -> tuple[float, float]:
    first, second = equation.params["spec"].split("->")[0].split(",")
    shapes = (_shape(v) for v in equation.invars)
    sizes = dict(zip(first + second, (n for shape in shapes for n in shape), strict=True))
    return 2.0 * math.prod(sizes.values()), 0.0


def _convolution(equation: JaxprEqn) -> tuple[float, float]:
    kernel, result = _shape(equation.invars[1]), _shape(equation.outvars[0])
    return 2.0 * math.prod(result) * math.prod(kernel[:-1]), 0.0


def _image_gradient(equation: JaxprEqn) -> tuple[float, float]:
    g, kernel = (_shape(v) for v in equation.invars)
    return 2.0 * math.prod(g) * math.prod(kernel[:-1]), 0.0


def _kernel_gradient(equation: JaxprEqn) -> tuple[float, float]:
    g, kernel = _shape(equation.invars[1]), _shape(equation.outvars[0])
    return 2.0 * math.prod(g) * math.prod(kernel[:-1]), 0.0


def _attention(equation: JaxprEqn) -> tuple[float, float]:
    """cuDNN's attention: scores and a mean of values; backwards the scores again, and four more.

    It skips what a causal mask or a window hides.
    """
    p = equation.params
    query, key, value = (_shape(v) for v in equation.invars[:3])
    length, heads = (2, 1) if int(getattr(p["layout"], "value", p["layout"])) == 1 else (1, 2)
    T, S = query[length], key[length]
    causal = "CAUSAL" in getattr(p.get("mask_type"), "name", "") or bool(p.get("use_causal_mask"))
    window = p.get("sliding_window_length") or S
    seen = np.arange(1, T + 1) if causal else np.full(T, S)
    pairs = 2.0 * query[0] * query[heads] * int(np.minimum(seen, min(window, S)).sum())
    if "_bwd" in equation.primitive.name:
        return pairs * (3 * query[3] + 2 * value[3]), pairs * query[3]
    return pairs * (query[3] + value[3]), 0.0


def _fused(equation: JaxprEqn) -> tuple[float, float]:
    """Attention by `nn.fused_attention`: of pairs of a query and a key that it sees.

    Forward there are two products. The gradients are five, of which the scores are recomputed, and
    the kernel runs forward once more. A derivative along tangents is six.
    """
    (B, T, N, H), S = _shape(equation.invars[0]), _shape(equation.invars[1])[1]
    seen = np.arange(1, T + 1) if equation.params["causal"] else np.full(T, S)
    pairs = int(np.minimum(seen, equation.params["window"] or S).sum())
    product = 2.0 * B * N * H * pairs
    total, again = {
        "fused_attention": (2, 0),
        "attention_slopes": (7, 3),
        "attention_tangent": (6, 0),
    }[equation.primitive.name]
    return total * product, again * product


PRODUCTS: dict[str, Callable[[JaxprEqn], tuple[float, float]]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv_general_dilated,
    "contraction": _contraction,
    "convolution": _convolution,
    "image_gradient": _image_gradient,
    "kernel_gradient": _kernel_gradient,
    "fused_attention": _fused,
    "attention_slopes": _fused,
    "attention_tangent": _fused,
} | {
    f"dot_product_attention_{kind}{way}{wrapped}": _attention
    for kind in ("", "fp8_")
    for way in ("fwd", "bwd")
    for wrapped in ("", "_wrapper")
}
UNKNOWN = {
    *("ffi_call", "pure_callback", "io_callback", "custom_partitioning", "tpu_custom_call"),
    *("cholesky", "lu", "triangular_solve", "eigh", "eig", "svd", "qr", "householder_product"),
    *("fft", "ragged_dot_general", "scaled_dot"),
}

# Operations that move numbers and compute none.
_MOVES = {
    *("reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "concatenate", "pad"),
    *("slice", "dynamic_slice", "dynamic_update_slice", "gather", "scatter", "rev", "split"),
    *("copy", "copy_p", "device_put", "convert_element_type", "bitcast_convert_type", "tile"),
    *("reduce_precision", "select_n", "iota", "empty", "real", "imag", "rng_bit_generator"),
    *("stop_gradient", "optimization_barrier", "name", "reshard", "pvary"),
    *("sharding_constraint", "laid", "layout_constraint", "all_gather", "all_to_all", "ppermute"),
    *("get", "swap", "masked_load", "masked_swap"),
}


def elementwise(equation: JaxprEqn) -> float:
    """One for each number that an operation makes, or sums up."""
    if equation.primitive.name in _MOVES:
        return 0.0
    arrays = [v.aval for v in (*equation.invars, *equation.outvars)]
    sizes = [
        math.prod(a.shape)
        for a in arrays
        if jnp.issubdtype(getattr(a, "dtype", jnp.int32), jnp.inexact)
    ]
    return float(max(sizes, default=0))


def number_of_products(jaxpr: Jaxpr) -> int:
    """How many products are written down in a program."""
    inner = (
        sub.jaxpr if isinstance(sub, ClosedJaxpr) else sub
        for equation in jaxpr.eqns
        for value in equation.params.values()
        for sub in (value if isinstance(value, (tuple, list)) else (value,))
        if isinstance(sub, (ClosedJaxpr, Jaxpr))
    )
    outside = sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)
    return outside + sum(map(number_of_products, inner))
