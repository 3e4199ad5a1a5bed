"""Attention as one kernel: cuDNN's on GPUs, splash attention on TPUs.

No [T, S] array of weights is written to memory, forward or backward; cuDNN reads the mask of packed
documents from one. Which kernel runs is decided
when a program is lowered for a platform; where there is none, it is the formula of
`plain_attention`. Three primitives make derivatives of every order:

  fused     the attention of queries, keys and values
  tangent   its derivative along tangents of the three; computed by the formula
  slopes    the transpose of that: gradients of the three, by the kernel's backward pass

The kernels know nothing of the mesh: each device runs them on its own examples and heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from genjax.nn.plain_attention import causal_mask, plain_attention
from genjax.parallel.layout import EXAMPLES, LENGTH, UNITS, dividing

# Of splash attention: what lengths are a multiple of; the shortest that is worth a kernel; queries,
# and keys, of one step at most.
_LANES, _SHORTEST, _TILE = 128, 512, 512


def fits(query: jax.Array, key: jax.Array, segments: bool, window: int = 0) -> bool:
    """Whether the accelerators of the mesh that is set have a kernel for these shapes and types.

    `segments` says whether a mask of packed documents is given: cuDNN then needs even lengths, and
    is not asked for a window as well, because no GPU has shown here that it computes both.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    (_, T, _, H), S, dtype = query.shape, key.shape[1], query.dtype
    if device is None:
        return False
    if device.platform == "tpu":
        long = min(T, S) >= _SHORTEST and T % _LANES == S % _LANES == 0
        return long and dtype in (jnp.bfloat16, jnp.float32)
    if device.platform in ("gpu", "cuda"):
        even = not segments or (T % 2 == S % 2 == 0 and not window)
        return even and H % 8 == 0 and H <= 128 and dtype in (jnp.bfloat16, jnp.float16)
    return False


def fused_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    causal: bool,
    window: int = 0,
    segment: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """`softmax(q k^T / sqrt(H)) v` per head, for shapes that `fits` allows.

    Args:
      query: q.
      key: k; each head serves N / K of queries.
      value: v.
      causal: whether a query sees only keys up to its own.
      window: if above 0, a causal query sees only so many keys, the last its own.
      segment: a query sees only keys of its own segment; T = S.
    """
    segments = () if segment is None else (segment,)
    mesh = jax.sharding.get_abstract_mesh()
    return fused_p.bind(query, key, value, *segments, causal=causal, window=window, mesh=mesh)


# ---- how it is computed --------------------------------------------------------------------------


def _same(segment: tuple[Array, ...]) -> Bool[Array, "B 1 T T"] | None:
    """Whether two positions are of one segment."""
    if not segment:
        return None
    return segment[0][:, None, :, None] == segment[0][:, None, None, :]


def formula(q: Array, k: Array, v: Array, *segment: Array, causal: bool, window: int = 0) -> Array:
    """The attention by operations that all platforms have."""
    mask = _same(segment)
    if causal:
        before = causal_mask(q.shape[1], k.shape[1], window)[None, None]
        mask = before if mask is None else mask & before
    return plain_attention(q, k, v, mask, causal=causal)


def cudnn(q: Array, k: Array, v: Array, *segment: Array, causal: bool, window: int = 0) -> Array:
    """The attention by cuDNN, which has no other platform."""
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=_same(segment),
        is_causal=causal,
        local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn",
    )


def splash(
    q: Array,
    k: Array,
    v: Array,
    *segment: Array,
    causal: bool,
    window: int = 0,
    interpret: bool = False,
) -> Array:
    """The attention by splash attention; anywhere but on a TPU with `interpret`, slowly."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    (_, T, N, H), S = q.shape, k.shape[1]
    mask = (library.CausalMask if causal else library.FullMask)((T, S))
    if window:
        mask = library.LocalMask((T, S), (window - 1, 0), 0)
    by_query, by_key = (math.gcd(length, _TILE) for length in (T, S))
    kernel = library.make_splash_mha(
        library.MultiHeadMask([mask] * N),
        block_sizes=library.BlockSizes(
            block_q=by_query,
            block_kv=by_key,
            block_q_dkv=by_query,
            block_kv_dkv=by_key,
            block_q_dq=by_query,
            block_kv_dq=by_key,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    scaled = (q.astype(jnp.float32) / math.sqrt(H)).astype(q.dtype)
    rows = tuple(x.swapaxes(1, 2) for x in (scaled, k, v))
    if segment:
        ids = library.SegmentIds(segment[0], segment[0])
        return jax.vmap(kernel)(*rows, ids).swapaxes(1, 2)
    return jax.vmap(kernel)(*rows).swapaxes(1, 2)


def _backward(
    forward: Callable, *arrays: Array, causal: bool, window: int
) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v; the last array is that of the attention."""
    *inputs, slope = arrays
    segment = inputs[3:]
    run = lambda q, k, v: forward(q, k, v, *segment, causal=causal, window=window)  # noqa: E731
    return jax.vjp(run, *inputs[:3])[1](slope)


def _forward_mode(*arrays: Array, causal: bool, window: int) -> Array:
    """The derivative along the last three arrays, tangents of q, k and v."""
    *inputs, dq, dk, dv = arrays
    form = partial(formula, causal=causal, window=window)
    run = lambda q, k, v: form(q, k, v, *inputs[3:])  # noqa: E731
    return jax.jvp(run, tuple(inputs[:3]), (dq, dk, dv))[1]


def _on_each_device(
    kernel: Callable, *arrays: Array, mesh: AbstractMesh, **parameters: Any
) -> Array | tuple[Array, ...]:
    """`kernel`, on every device for its own examples and heads."""
    kernel = partial(kernel, **parameters)
    if mesh.empty or mesh.size == 1:
        return kernel(*arrays)
    examples = dividing(mesh, arrays[0].shape[0], EXAMPLES)
    heads = dividing(mesh, arrays[1].shape[2], (UNITS, LENGTH))
    four, two = PartitionSpec(examples, None, heads, None), PartitionSpec(examples, None)
    specs = tuple(four if array.ndim == 4 else two for array in arrays)
    outs = jax.eval_shape(kernel, *arrays)
    return jax.shard_map(
        kernel,
        mesh=mesh,
        in_specs=specs,
        out_specs=jax.tree.map(lambda _: four, outs),
        check_vma=False,
    )(*arrays)


# ---- the primitives ------------------------------------------------------------------------------


def _primitive(
    name: str, result: Callable, standard: Callable, kernels: dict[str, Callable], several: bool
) -> Primitive:
    """A primitive with a lowering for each platform that has a kernel."""
    made = Primitive(name)
    made.multiple_results = several
    made.def_impl(partial(xla.apply_primitive, made))
    made.def_abstract_eval(lambda *avals, **_: result(*avals))

    def on_any(*arrays: Array, mesh: AbstractMesh, causal: bool, window: int) -> Any:
        return standard(*arrays, causal=causal, window=window)

    mlir.register_lowering(made, mlir.lower_fun(on_any, multiple_results=several))
    for platform, kernel in kernels.items():
        spread = mlir.lower_fun(partial(_on_each_device, kernel), multiple_results=several)
        mlir.register_lowering(made, spread, platform=platform)
    batching.primitive_batchers[made] = partial(_batched, made)
    return made


def _batched(made: Primitive, arrays: tuple, dims: tuple, **parameters: Any) -> tuple:
    """What is mapped becomes more examples."""
    count = next(a.shape[d] for a, d in zip(arrays, dims, strict=True) if d is not None)
    moved = [
        jnp.broadcast_to(a, (count, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        for a, d in zip(arrays, dims, strict=True)
    ]
    outs = made.bind(*(a.reshape(-1, *a.shape[2:]) for a in moved), **parameters)
    unfolded = [out.reshape(count, -1, *out.shape[1:]) for out in jax.tree.leaves(outs)]
    return (unfolded, [0] * len(unfolded)) if made.multiple_results else (unfolded[0], 0)


def _like_query(q: Any, *_: Any) -> Any:
    return q


fused_p = _primitive(
    "fused_attention", _like_query, formula, {"cuda": cudnn, "tpu": splash}, several=False
)
tangent_p = _primitive("attention_tangent", _like_query, _forward_mode, {}, several=False)
slopes_p = _primitive(
    "attention_slopes",
    lambda q, k, v, *_: (q, k, v),
    partial(_backward, formula),
    {"cuda": partial(_backward, cudnn), "tpu": partial(_backward, splash)},
    several=True,
)


def _fused_jvp(primals: tuple, tangents: tuple, **parameters: Any) -> tuple[Array, Array]:
    out = fused_p.bind(*primals, **parameters)
    moved = [ad.instantiate_zeros(t) for t in tangents[:3]]
    return out, tangent_p.bind(*primals, *moved, **parameters)


def _by_formula(standard: Callable) -> Callable:
    """The derivative of a primitive is that of its formula."""

    def rule(
        primals: tuple, tangents: tuple, *, causal: bool, window: int, mesh: AbstractMesh
    ) -> tuple:
        moved = tuple(ad.instantiate_zeros(t) for t in tangents)
        return jax.jvp(partial(standard, causal=causal, window=window), tuple(primals), moved)

    return rule


def _tangent_transposed(slope: Any, *arrays: Any, **parameters: Any) -> list[Array | None]:
    *inputs, _, _, _ = arrays
    if type(slope) is ad.Zero:
        return [None] * len(arrays)
    slopes = slopes_p.bind(*inputs, slope, **parameters)
    return [*[None] * len(inputs), *slopes]


ad.primitive_jvps[fused_p] = _fused_jvp
ad.primitive_jvps[tangent_p] = _by_formula(_forward_mode)
ad.primitive_transposes[tangent_p] = _tangent_transposed
ad.primitive_jvps[slopes_p] = _by_formula(partial(_backward, formula))
