"""oneDNN's forms against `jax.lax` in float64, under concurrency, and where they cannot be had."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from genjax.nn.convolution import convolution, image_gradient, kernel_gradient
from genjax.nn.cpu import onednn
from genjax.nn.products import contraction
from genjax.nn.window import Window, channels_last, result_size

HALF = {
    np.float32: 2.0**-24,
    jnp.bfloat16.dtype.type: 2.0**-8,
}  # half a unit in the last place of 1


@pytest.fixture(scope="module")
def used(library):
    with onednn.used(library):
        yield


def calls(f, *arguments):
    """How many calls of oneDNN the program of f on one CPU has, lowered now."""
    return jax.jit(lambda *now: f(*now)).lower(*arguments).as_text().count(f"@{onednn.TARGET}")


def covered(dtype):
    """Whether oneDNN computes products of that type on this CPU."""
    return bool(onednn.cpu_flags() & onednn.CPU_FLAGS[onednn.TYPES[jnp.dtype(dtype)]])


def plain(x, w, window):
    return lax.conv_general_dilated(
        x,
        w,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=channels_last(x.ndim),
        feature_group_count=window.groups,
    )


@st.composite
def cases(draw):
    """Sizes of an image and a kernel, channels, and a window that they have a result under."""
    rank = draw(st.integers(1, 3))
    each = partial(st.lists, min_size=rank, max_size=rank)
    taps = draw(each(st.integers(1, 4)))
    strides, dilation = draw(each(st.integers(1, 3))), draw(each(st.integers(1, 3)))
    padding = draw(each(st.tuples(st.integers(0, 4), st.integers(0, 4))))
    reach = [
        d * (k - 1) + 1 - low - high
        for d, k, (low, high) in zip(dilation, taps, padding, strict=True)
    ]
    size = [max(r, 1) + draw(st.integers(0, 12 if rank < 3 else 4)) for r in reach]
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, "each"]))
    channels = draw(st.sampled_from([1, 2, 3, 8, 16, 24]))
    groups, c = (channels, 1) if groups == "each" else (groups, channels)
    f = draw(st.sampled_from([1, 2, 5, 16]))
    window = Window(tuple(strides), tuple(padding), tuple(dilation), groups)
    batch = draw(st.integers(1, 5))
    return batch, tuple(size), tuple(taps), groups * c, groups * f, window


TYPES = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "float32 kernels": (jnp.bfloat16, jnp.float32),  # rounded, but not their gradients
}


# Number of examples, size, taps, channels, features, window: computed in pieces on several threads,
# on most of them with a smaller one at the end.
PIECES = [
    (5, (14, 14), (3, 3), 16, 32, Window((1, 1), ((1, 1), (1, 1)), (1, 1))),
    (7, (13, 14), (4, 3), 32, 16, Window((2, 2), ((1, 1), (0, 1)), (1, 1))),
    (9, (16, 16), (5, 5), 64, 64, Window((1, 1), ((2, 2), (2, 2)), (1, 1), 64)),
    (6, (16, 16), (3, 3), 24, 36, Window((1, 1), ((1, 1), (1, 1)), (1, 1), 3)),
    (3, (400,), (5,), 32, 32, Window((1,), ((8, 0),), (2,))),
]


@pytest.mark.parametrize("types", TYPES)
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(case=cases())
@example(case=PIECES[0])
@example(case=PIECES[1])
@example(case=PIECES[2])
@example(case=PIECES[3])
@example(case=PIECES[4])
def test_members_are_exact_to_what_their_type_earns(used, types, case):
    """To half a unit of the result, and of float32 for each of the products that are summed."""
    dtype, wide = TYPES[types]
    batch, size, taps, C, F, window = case
    rng = np.random.default_rng(0)
    small = result_size(size, taps, window)
    x, w, g = (
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in ((batch, *size, C), (*taps, C // window.groups, F), (batch, *small, F))
    )

    def members(x, w, g):
        return (
            convolution(x, w, window),
            image_gradient(g, w, window, size),
            kernel_gradient(x, g, window, taps, dtype=wide),
        )

    kernel = w.astype(wide)
    assert calls(members, x, kernel, g) >= 2 * covered(dtype)  # an image's gradient may be left us
    found = jax.jit(members)(x, kernel, g)
    assert [f.dtype for f in found] == [dtype, dtype, wide]

    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, w, g)]

        @jax.jit
        def references(x, w, g):
            y, back = jax.vjp(partial(plain, window=window), x, w)
            return y, *back(g)

        expected = jax.tree.map(np.asarray, references(*exact))
        magnitude = jax.tree.map(np.asarray, references(*map(abs, exact)))
    terms = (w.size // F, w.size // C * window.groups, g.size // F)
    for ours, right, most, count in zip(found, expected, magnitude, terms, strict=True):
        error = np.abs(np.asarray(ours, np.float64) - right)
        bound = 1.01 * HALF[ours.dtype.type] * np.abs(right) + (count + 2) * 2.0**-24 * most
        assert (error <= bound).all(), (error / bound).max()


WINDOWS = {
    "plain": ((6, 5), (3, 2), 8, 16, Window((1, 1), ((1, 1), (0, 1)), (1, 1))),
    "strided": ((8, 6), (4, 3), 16, 8, Window((2, 2), ((1, 1), (1, 1)), (1, 1))),
    "gaps": ((12,), (3,), 4, 8, Window((1,), ((4, 0),), (2,))),
    "each": ((6, 6), (3, 3), 8, 8, Window((1, 1), ((1, 1), (1, 1)), (1, 1), 8)),
    "space": ((3, 5, 4), (2, 3, 3), 4, 6, Window((1, 2, 1), ((0, 1), (1, 1), (1, 1)), (1,) * 3)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_second_derivatives_backward_and_forward(used, name):
    size, taps, C, F, window = WINDOWS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, *size, C))
    w = rng.normal(size=(*taps, C // window.groups, F)) / np.sqrt(np.prod(taps) * C)
    along = rng.normal(size=x.shape), rng.normal(size=w.shape)

    def derivatives(f, x, w, along):
        def loss(x, w):
            return jnp.sin(f(x, w)).sum()

        slope = jax.grad(loss, (0, 1))
        backward = jax.grad(lambda x, w: sum(map(jnp.vdot, slope(x, w), along)), (0, 1))
        return loss(x, w), slope(x, w), jax.jvp(slope, (x, w), along)[1], backward(x, w)

    with jax.enable_x64(True):
        exact = jax.jit(partial(derivatives, partial(plain, window=window)))(x, w, along)
        exact = jax.tree.map(np.asarray, exact)
    ours = jax.jit(partial(derivatives, partial(convolution, window=window)))
    single = jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), (x, w, along))
    assert calls(ours, *single) >= 8
    found = ours(*single)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-4), found, exact)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-4), found[2], found[3])


# The larger ones are computed in pieces.
SPECS = {
    "ab,bc->ac": ((513, 64), (64, 65)),
    "ba,bc->ac": ((64, 513), (64, 65)),
    "ab,cb->ac": ((513, 64), (65, 64)),
    "nab,nbc->nac": ((7, 50, 64), (7, 64, 65)),
    "anb,bnc->nac": ((50, 7, 64), (64, 7, 65)),
    "mnab,mnbc->mnac": ((3, 5, 50, 64), (3, 5, 64, 40)),
    "rd,df->rf": ((300, 40), (40, 50)),
    "rd,rf->df": ((300, 40), (300, 50)),
    "rf,df->rd": ((300, 50), (40, 50)),
    "tbh,tbf->hf": ((20, 7, 30), (20, 7, 50)),
    "btkgd,bskd->kbtgs": ((3, 20, 2, 2, 16), (3, 24, 2, 16)),
    "kbtgs,bskd->btkgd": ((2, 3, 20, 2, 24), (3, 24, 2, 16)),
    "qnd,qdk->qnk": ((2, 30, 40), (2, 40, 5)),
    "abcd,dbea->cae": ((4, 5, 6, 7), (7, 5, 8, 4)),  # nothing lies in order
    "d,df->f": ((40,), (40, 50)),
    "rd,d->r": ((30, 40), (40,)),
    "r,f->rf": ((30,), (50,)),
    "bd,bd->b": ((3, 40), (3, 40)),
    "rd,df->fr": ((30, 1), (1, 50)),
    "dr,fd->rf": ((40, 1), (1, 40)),
}


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_products_in_any_layout(used, spec, types):
    dtype, wide = TYPES[types]
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=shape), dtype) for shape in SPECS[spec])
    y = y.astype(wide)
    assert calls(partial(contraction, spec), x, y) == covered(dtype)
    exact = np.einsum(spec, np.asarray(x, np.float64), np.asarray(y, np.float64))
    most = np.einsum(spec, *(np.abs(np.asarray(a, np.float64)) for a in (x, y)))
    found = np.asarray(contraction(spec, x, y), np.float64)
    assert (np.abs(found - exact) <= 300 * 2.0**-24 * most).all()


def test_ten_thousand_calls_at_once_give_one_result(used):
    """From eight threads, and within a program side by side; each gradient has a scratchpad."""
    rng = np.random.default_rng(0)
    window = Window((1, 1), ((1, 1), (1, 1)), (1, 1))
    dtype = jnp.bfloat16 if covered(jnp.bfloat16) else jnp.float32
    x = jnp.asarray(rng.normal(size=(8, 8, 8, 16)), dtype)
    w = jnp.asarray(rng.normal(size=(3, 3, 16, 32)), jnp.float32)

    @jax.jit
    def five(x, w):
        y = [convolution(x + i, w, window) for i in range(2)]
        back = image_gradient(y[0], w, window, (8, 8))
        return *y, back, *(kernel_gradient(x + i, y[0], window, (3, 3)) for i in range(2))

    assert calls(five, x, w) == 5
    first = jax.tree.map(np.asarray, five(x, w))

    def same(_):
        found = jax.tree.map(np.asarray, five(x, w))
        return all(np.array_equal(a, b) for a, b in zip(found, first, strict=True))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(same, range(2000)))


def loss(x, w):
    window = Window((1, 1), ((1, 1), (1, 1)), (1, 1))
    return jnp.square(convolution(jnp.tanh(convolution(x, w, window)), w, window)).sum()


def image_and_kernel():
    rng = np.random.default_rng(0)
    shapes = (8, 6, 6, 16), (3, 3, 16, 16)
    return (jnp.asarray(rng.normal(size=shape) / 4, jnp.float32) for shape in shapes)


def test_transformations_keep_the_calls(used):
    x, w = image_and_kernel()
    slope = jax.grad(loss, (0, 1))
    expected = slope(x, w)

    def scanned(x, w):
        body = jax.checkpoint(lambda total, one: (total + loss(one[None], w), None))
        return lax.scan(body, 0.0, x)[0]

    def mapped(x, w):
        return jax.vmap(loss, (0, None))(x[:, None], w).sum()

    def branched(x, w):
        return lax.cond(x.sum() > 1e9, lambda: 0.0, lambda: loss(x, w))

    for form in (scanned, mapped, branched):
        found = jax.jit(jax.grad(form, (0, 1)))
        assert calls(found, x, w) >= 4
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found(x, w), expected
        )


def test_several_devices_exports_and_other_platforms_get_operations_of_xla(used):
    x, w = image_and_kernel()
    assert calls(loss, x, w) == 2
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    assert onednn.TARGET not in jax.jit(loss).lower(split, w).as_text()
    assert onednn.TARGET not in jax.export.export(jax.jit(loss))(x, w).mlir_module()
    tpu = jax.jit(loss).trace(x, w).lower(lowering_platforms=("tpu",))
    assert onednn.TARGET not in tpu.as_text()
    with jax.enable_x64(True):
        assert calls(loss, *(jnp.asarray(np.asarray(a, np.float64)) for a in (x, w))) == 0


def test_what_was_not_asked_for_is_not_called(library):
    x, w = image_and_kernel()
    with onednn.used(onednn.Unavailable("trial")):
        assert onednn.in_use() == "XLA: trial"
        assert calls(loss, x, w) == 0
    with onednn.used(library):
        assert onednn.in_use() == "oneDNN 3.2.0"


FAULTS = {
    "no compiler": ({"PATH": "/nowhere"}, "no C++ compiler on PATH: install g++"),
    "a broken compiler": ({"CXX": "/bin/false"}, "the compiler /bin/false failed"),
    "not there": ({"CXX": "/bin/no-such"}, "the compiler /bin/no-such cannot be run"),
    "no folder": ({}, "oneDNN cannot be built: "),
    "another library": ({"CXX": "COMPILER"}, "cannot be loaded"),
    "half installed": ({}, "oneDNN 3 is not installed: pip install 'genjax-models[cpu]'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_why_it_cannot_be_had(library, monkeypatch, tmp_path, fault):
    variables, message = FAULTS[fault]
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(onednn, "_libraries", {})
    compiler, folder = tmp_path / "c++", tmp_path / "folder"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\n[ $# = 1 ] || echo nothing > "$last"\n')
    compiler.chmod(0o755)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("COMPILER", f"env '{compiler}'"))
    if fault == "half installed":  # a library without its headers
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "libdnnl.so").write_text("")
        monkeypatch.setattr(onednn.sys, "prefix", str(tmp_path))
        monkeypatch.setattr(onednn.site, "getuserbase", lambda: str(tmp_path))
    if fault == "no folder":
        folder.write_text("a file")
    with pytest.raises(onednn.Unavailable) as error:
        onednn.load(folder)
    assert message in str(error.value)


@pytest.mark.parametrize("major", [2, 3])
def test_another_installation_is_found_if_it_is_new_enough(monkeypatch, tmp_path, major):
    header = tmp_path / "include" / "oneapi" / "dnnl" / "dnnl_version.h"
    library = tmp_path / "lib64" / "libdnnl.so"
    for path in (header, library):
        path.parent.mkdir(parents=True)
    names = {"MAJOR": major, "MINOR": 6, "PATCH": 1}
    header.write_text("".join(f"#define DNNL_VERSION_{n} {v}\n" for n, v in names.items()))
    library.write_text("")
    monkeypatch.setattr(onednn.sys, "prefix", str(tmp_path / "none"))
    monkeypatch.setattr(onednn.site, "getuserbase", lambda: str(tmp_path))
    if major == 3:
        assert onednn._installed() == (tmp_path / "include", library, "3.6.1")
    else:
        with pytest.raises(onednn.Unavailable, match="oneDNN 3 is not installed"):
            onednn._installed()


def test_other_machines_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(onednn.platform, "machine", lambda: "aarch64")
    with pytest.raises(onednn.Unavailable, match="aarch64"):
        onednn.load(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(onednn, "cpu_flags", lambda: frozenset({"sse2"}))
    with pytest.raises(onednn.Unavailable, match=r"AVX2|Linux"):
        onednn.load(tmp_path)


def test_processes_that_start_together_build_once_and_a_damaged_library_is_built_again(
    library, tmp_path
):
    """The compiler is one that writes a line whenever it compiles."""
    compiler, log, folder = tmp_path / "c++", tmp_path / "log", tmp_path / "cache"
    compiler.write_text(f'#!/bin/sh\necho "$@" | grep -e -shared >> {log}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    code = f"""
from pathlib import Path
from genjax.nn.cpu import onednn
print(onednn.load(Path({str(folder)!r})).version)
"""
    command = [sys.executable, "-c", code]
    environment = os.environ | {"CXX": str(compiler)}

    def together(count):
        processes = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        assert [process.communicate()[0] for process in processes] == ["3.2.0\n"] * count
        return len(log.read_text().splitlines())

    assert together(3) == 1
    (built,) = folder.glob("*.so")
    built.write_bytes(b"not a library")
    assert together(1) == 2
    assert [path.name for path in folder.glob("*.so")] == [built.name]
