"""The kernels of accelerators, as far as a CPU can tell: their programs, and splash's numbers."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from genjax.nn import attention as chosen
from genjax.nn import fused_attention as fused
from genjax.planning import gpus

B, T, N, K, H = 2, 256, 4, 2, 64
AXES = ("data", "fsdp", "sequence", "tensor")


def mesh_of(platform, sizes=(2, 1, 1, 2)):
    device = AbstractDevice(device_kind=platform, num_cores=1, platform=platform)
    return AbstractMesh(sizes, AXES, (AxisType.Auto,) * 4, abstract_device=device)


def arrays(dtype=jnp.float32, length=T):
    draws = np.random.default_rng(0)
    shapes = [(B, length, N, H), (B, length, K, H), (B, length, K, H)]
    return [jnp.asarray(draws.normal(size=shape), dtype) for shape in shapes]


def expected(q, k, v, causal, segment, window):
    """Attention head by head in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.empty_like(q)
    for b, n in np.ndindex(B, N):
        scores = q[b, :, n] @ k[b, :, n // 2].T / np.sqrt(H)
        seen = np.tril(np.ones(scores.shape, bool)) if causal else np.ones(scores.shape, bool)
        if window:
            seen &= np.triu(seen, 1 - window)
        if segment is not None:
            seen &= np.equal.outer(segment[b], segment[b])
        weights = np.where(seen, np.exp(scores - scores.max()), 0)
        out[b, :, n] = weights / weights.sum(1, keepdims=True) @ v[b, :, n // 2]
    return out


SEGMENT = np.repeat(np.array([[1, 1, 2, 3], [0, 1, 1, 1]]), T // 4, axis=1).astype(np.int32)
CASES = {
    "window": (True, None, 100),
    "all": (False, None, 0),
    "segments": (True, SEGMENT, 0),
}


@pytest.mark.parametrize(("causal", "segment", "window"), CASES.values(), ids=[*CASES])
def test_splash_attention_and_its_gradients(causal, segment, window):
    """By Pallas's interpreter, against the formula."""
    given = arrays()
    ids = () if segment is None else (jnp.asarray(segment),)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, N, H)), jnp.float32)

    def run(form):
        def total(q, k, v):
            out = form(q, k, v, *ids, causal=causal, window=window)
            return (out * weight).sum(), out

        (_, out), slopes = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*given)
        return out, slopes

    out, slopes = jax.jit(partial(run, partial(fused.splash, interpret=True)))()
    formula, right = jax.jit(partial(run, fused.formula))()
    np.testing.assert_allclose(formula, expected(*given, causal, segment, window), atol=2e-6)
    np.testing.assert_allclose(out, formula, atol=5e-6)
    for slope, like in zip(slopes, right, strict=True):
        np.testing.assert_allclose(slope, like, atol=2e-5 * np.abs(like).max())


def loss(q, k, v, window=0):
    mask = jnp.tril(jnp.ones((T * 2, T * 2), bool))
    mask &= jnp.triu(mask, 1 - (window or 2 * T))
    out = chosen.attention(q, k, v, mask, causal=True, window=window, implied=True)
    return (out.astype(jnp.float32) ** 2).sum()


def test_programs_for_accelerators_call_the_kernels():
    """Forward and backward, on each device for its part; programs for CPUs have none."""
    given = arrays(jnp.bfloat16, 2 * T)
    calls = {}
    for platform, lowered, target in (
        ("gpu", "cuda", r"__cudnn\$fmha\w*"),
        ("tpu", "tpu", "tpu_custom_call"),
        ("cpu", "cpu", "custom_call"),
    ):
        with jax.sharding.use_abstract_mesh(mesh_of(platform)):
            traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*given)
            with gpus.cudnn():  # as a plan does where no cuDNN is installed
                text = traced.lower(lowering_platforms=(lowered,)).as_text()
        calls[platform] = re.findall(rf"@\"?({target})", text)
        shapes = set(re.findall(r"tensor<([0-9x]+)xbf16>", text))
        if platform != "cpu":
            assert "1x512x2x64" in shapes or "1x2x512x64" in shapes  # of four devices each
            assert "512x512" not in text.replace("512x512xi1", "")
    assert len(calls["gpu"]) >= 2
    assert any("Backward" in name for name in calls["gpu"])
    assert len(calls["tpu"]) >= 3  # forward, keys and values, queries
    assert not [name for name in calls["cpu"] if "fmha" in name or "tpu" in name]


def test_cudnn_is_told_the_window():
    given = arrays(jnp.bfloat16, 2 * T)
    with jax.sharding.use_abstract_mesh(mesh_of("gpu")), gpus.cudnn():
        slopes = jax.jit(jax.grad(partial(loss, window=30), (0, 1, 2)))
        text = slopes.trace(*given).lower(lowering_platforms=("cuda",)).as_text()
        assert re.findall(r"sliding_window_length\\22: (\d+)", text) == 3 * ["30"]
        for segments, kernel in ((False, True), (True, False)):
            assert fused.fits(*given[:2], segments=segments, window=30) == kernel


SEGMENTS = np.array([[1, 1, 2, 2, 2], [1, 2, 2, 3, 3]], np.int32)


@pytest.mark.parametrize(("ids", "window"), [((), 2), ((SEGMENTS,), 0)])
def test_derivatives_of_every_order_and_mapped(ids, window):
    """A CPU computes the primitives by the formula: what is tested are their rules."""
    draws = np.random.default_rng(0)
    shapes = ((2, 5, 4, 3), (2, 5, 2, 3), (2, 5, 2, 3))
    given, moved, turned = (
        [jnp.asarray(draws.normal(size=shape), jnp.float32) for shape in shapes] for _ in range(3)
    )
    segment = jnp.asarray(ids[0]) if ids else None

    def results(form):
        def total(*arrays):
            return (jnp.sin(form(*arrays))).sum()

        slopes = jax.grad(total, (0, 1, 2))
        each = jax.vmap(jax.grad(total, (0, 1, 2)), in_axes=(0, None, 2))
        stacked = jnp.stack(given[2:] * 3, axis=2)
        return (
            jax.jvp(form, given, moved),
            slopes(*given),
            jax.jvp(slopes, given, moved)[1],  # forward over reverse
            jax.grad(lambda *a: jax.jvp(total, a, tuple(moved))[1], (0, 1, 2))(*turned),
            jax.grad(lambda *a: sum((s**2).sum() for s in slopes(*a)), (0, 1, 2))(*given),
            each(jnp.stack(given[:1] * 3), given[1], stacked),
            jax.grad(jax.checkpoint(total))(*given),
        )

    options = {"causal": True, "window": window}
    found = jax.jit(lambda: results(partial(fused.fused_attention, **options, segment=segment)))()
    right = jax.jit(
        lambda: results(lambda *a: fused.formula(*a, *map(jnp.asarray, ids), **options))
    )()
    jax.tree.map(partial(np.testing.assert_allclose, atol=3e-5, rtol=1e-4), found, right)


@pytest.mark.parametrize(
    ("platform", "length", "size", "dtype", "expected"),
    [
        ("tpu", 1024, 64, jnp.bfloat16, True),
        ("tpu", 256, 64, jnp.bfloat16, False),  # short
        ("tpu", 1000, 64, jnp.bfloat16, False),
        ("gpu", 1000, 64, jnp.bfloat16, True),
        ("gpu", 1024, 64, jnp.float32, False),
        ("gpu", 1024, 256, jnp.float16, False),
        ("cpu", 1024, 64, jnp.bfloat16, False),
    ],
)
def test_where_there_is_a_kernel(platform, length, size, dtype, expected):
    array = jax.ShapeDtypeStruct((2, length, 4, size), dtype)
    with jax.sharding.use_abstract_mesh(mesh_of(platform)):
        assert fused.fits(array, array, segments=False) == expected
    assert not fused.fits(array, array, segments=False)


@pytest.mark.parametrize(("length", "expected"), [(1024, True), (1023, False)])
def test_cudnn_takes_packed_documents_of_even_lengths(length, expected):
    array = jax.ShapeDtypeStruct((2, length, 4, 64), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(mesh_of("gpu")):
        assert fused.fits(array, array, segments=False)
        assert fused.fits(array, array, segments=True) == expected
