"""Convolutions and products by oneDNN, called from XLA's programs on one CPU device.

XLA's own convolutions on the CPU are slower: with them a U-Net's step has half of the speed in
float32, and less than a quarter in bfloat16 (docs/performance.md). `onednn.cc` is built at first
use, with the compiler that is there, and kept; `used` makes the programs that are lowered inside of
it call it. What it does not cover (other types, several devices, an export) keeps XLA's forms.

A call's spec is described in `onednn.cc`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import itertools
import math
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jaxtyping import Array, Float

from genjax.nn.window import Shape, Window, result_size

SOURCE = Path(__file__).with_name("onednn.cc")
TARGET = "genjax_onednn"
CONVOLUTION, IMAGE, KERNEL, PRODUCT = range(4)
TYPES = {jnp.dtype(jnp.float32): 0, jnp.dtype(jnp.bfloat16): 1}
# Channels of an image from which on its gradient under a stride is faster than by phases.
ENOUGH_CHANNELS = {0: 12, 1: 3}
CPU_FLAGS = {0: {"avx2"}, 1: {"avx512_bf16", "amx_bf16"}}  # that multiply a type


class Unavailable(Exception):
    """Why oneDNN cannot be used here, and what to do about it."""


class Library(NamedTuple):
    """oneDNN, loaded and known to XLA.

    Attributes:
      version: of oneDNN.
      target: its name to XLA; a library that is built anew has another one.
      implementation: spec -> the names of its implementations, "" if it has none.
    """

    version: str
    target: str
    implementation: Callable[[tuple[int, ...]], str]


_libraries: dict[str, Library] = {}  # that are loaded, by the names of their files
_used: Library | Unavailable = Unavailable("not asked for")  # by programs that are lowered now


@contextlib.contextmanager
def used(library: Library | Unavailable) -> Iterator[None]:
    """Programs that are lowered inside call `library`, or else XLA's own forms.

    Like the backend that JAX runs on, this is one for the process, in all of its threads. Programs
    lowered before stay as they are, and those lowered inside stay so afterwards.
    """
    global _used
    before, _used = _used, library
    try:
        yield
    finally:
        _used = before


def in_use() -> str:
    """Who computes in the programs that are lowered now: "oneDNN 3.2.0", or "XLA: " and why."""
    return f"XLA: {_used}" if isinstance(_used, Unavailable) else f"oneDNN {_used.version}"


def multiplies(dtype: jnp.dtype) -> bool:
    """Whether products of that type are worth it here: the CPU has them, and who computes too.

    XLA uses AMX itself, but not AVX512-BF16.
    """
    flags = cpu_flags() & CPU_FLAGS[TYPES[jnp.dtype(dtype)]]
    return bool(flags - {"avx512_bf16"}) or (bool(flags) and not isinstance(_used, Unavailable))


# ---- Loading


def load(folder: Path) -> Library:
    """oneDNN, built into `folder` if that was not done before.

    Several processes may call it at once: one of them builds.

    Raises:
      Unavailable: the machine, its compiler or its libraries do not allow it, or `folder` cannot
        be written.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Unavailable(f"no oneDNN on {platform.system()} {platform.machine()}")
    if not cpu_flags() & CPU_FLAGS[0]:
        raise Unavailable("this CPU has no AVX2")
    include, library, version = _installed()
    compiler = (
        shlex.split(os.environ.get("CXX", ""))
        or [*filter(shutil.which, ("g++", "c++", "clang++"))][:1]
    )
    if not compiler:
        raise Unavailable("no C++ compiler on PATH: install g++")
    made_by = _output([*compiler, "--version"])
    command = [
        *(*compiler, "-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-shared"),
        *("-isystem", jax.ffi.include_dir(), "-idirafter", str(include), str(SOURCE)),
        *(f"-L{library.parent}", f"-Wl,-rpath,{library.parent}", "-ldnnl", "-l:libgomp.so.1"),
    ]
    facts = (SOURCE.read_bytes(), command, made_by, version, jaxlib.__version__)
    key = hashlib.sha256(repr((*facts, sorted(cpu_flags()))).encode()).hexdigest()[:16]
    path = folder / f"onednn-{key}.so"
    found = _loaded(path, version)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "onednn.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = _loaded(path, version)  # by another process, meanwhile
            if found is None:
                _build(command, path)
                found = _loaded(path, version)
    except OSError as error:
        raise Unavailable(f"oneDNN cannot be built: {error}") from error
    if found is None:
        raise Unavailable(f"what was built of oneDNN, {path}, cannot be loaded")
    return found


def _installed() -> tuple[Path, Path, str]:
    """The folder of oneDNN's headers, its library, and its version: pip's, or the system's."""
    for root in map(Path, (sys.prefix, site.getuserbase(), "/usr/local", "/usr")):
        header = root / "include" / "oneapi" / "dnnl" / "dnnl_version.h"
        folders = [root / "lib", root / "lib64", root / "lib" / "x86_64-linux-gnu"]
        found = [path for path in (f / "libdnnl.so" for f in folders) if path.exists()]
        if not found or not header.exists():
            continue
        numbers = dict(re.findall(r"define DNNL_VERSION_(\w+) +(\d+)", header.read_text()))
        version = ".".join(numbers.get(part, "?") for part in ("MAJOR", "MINOR", "PATCH"))
        if numbers.get("MAJOR", "").isdigit() and int(numbers["MAJOR"]) >= 3:
            return root / "include", found[0].resolve(), version
    raise Unavailable("oneDNN 3 is not installed: pip install 'genjax-models[cpu]'")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the compiler {command[0]} does not run: {error}") from error
    if done.returncode:
        last = " ".join((done.stderr or done.stdout).split())[:300]
        raise Unavailable(f"the compiler {command[0]} failed: {last}")
    return done.stdout


def _build(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        _output([*command, "-o", str(made)])
        made.replace(path)


def _loaded(path: Path, version: str) -> Library | None:
    """The library of that name, made known to XLA; None if there is none, or it is damaged."""
    if path.name in _libraries:
        return _libraries[path.name]
    try:
        library = ctypes.CDLL(str(path))
        library.genjax_onednn_implementation.restype = ctypes.c_char_p
        handler = jax.ffi.pycapsule(library.genjax_onednn)
    except (OSError, AttributeError):
        return None
    target = f"{TARGET}_{path.stem.rpartition('-')[2]}"
    jax.ffi.register_ffi_target(target, handler, platform="cpu")

    @functools.lru_cache(maxsize=4096)
    def implementation(spec: tuple[int, ...]) -> str:
        numbers = (ctypes.c_int64 * len(spec))(*spec)
        sizes = map(ctypes.c_int64, (len(spec), len(os.sched_getaffinity(0))))
        return library.genjax_onednn_implementation(numbers, *sizes).decode()

    return _libraries.setdefault(path.name, Library(version, target, implementation))


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What the first CPU can do, as Linux names it; empty where that is not known."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


# ---- Forms of the bilinear primitives; each returns None of what it does not cover


def convolution(
    x: Float[Array, "B *space C"], kernel: Float[Array, "*k c F"], *, window: Window, **_
) -> Float[Array, "B *small F"] | None:
    """See `genjax.nn.convolution.convolution`."""
    small = result_size(x.shape[1:-1], kernel.shape[:-2], window)
    y = jax.ShapeDtypeStruct((len(x), *small, kernel.shape[-1]), x.dtype)
    return _convolution(CONVOLUTION, x, kernel, x, kernel, y, window, y)


def image_gradient(
    g: Float[Array, "B *small F"],
    kernel: Float[Array, "*k c F"],
    *,
    window: Window,
    size: Shape,
    **_,
) -> Float[Array, "B *space C"] | None:
    """See `genjax.nn.convolution.image_gradient`."""
    channels = kernel.shape[-2] * window.groups
    if max(window.strides) > 1 and window.groups == 1 and max(window.dilation) == 1:
        single = kernel.size == kernel.shape[-1] * kernel.shape[-2]
        if single or channels < ENOUGH_CHANNELS[TYPES.get(g.dtype, 0)]:
            return None  # sub-pixel phases are faster
    if max(window.strides) > 1 and window.groups > 1 and g.dtype == jnp.bfloat16:
        wide = image_gradient(
            *(g.astype(jnp.float32), kernel.astype(g.dtype).astype(jnp.float32)),
            window=window,
            size=size,
        )
        return None if wide is None else wide.astype(g.dtype)
    x = jax.ShapeDtypeStruct((len(g), *size, channels), g.dtype)
    return _convolution(IMAGE, g, kernel, x, kernel, g, window, x)


def kernel_gradient(
    x: Float[Array, "B *space C"],
    g: Float[Array, "B *small F"],
    *,
    window: Window,
    taps: Shape,
    dtype: jnp.dtype,
    **_,
) -> Float[Array, "*k c F"] | None:
    """See `genjax.nn.convolution.kernel_gradient`."""
    shape = (*taps, x.shape[-1] // window.groups, g.shape[-1])
    kernel = jax.ShapeDtypeStruct(shape, dtype)
    return _convolution(KERNEL, x, g, x, kernel, g, window, kernel)


def _convolution(member, first, second, x, kernel, y, window, result):
    lows, highs = zip(*window.padding, strict=True)
    if min(*lows, *highs) < 0 or not all(math.prod(a.shape) for a in (x, kernel, y)):
        return None
    spec = (
        *(len(x.shape) - 2, x.shape[0], x.shape[-1], y.shape[-1], window.groups),
        *(*x.shape[1:-1], *y.shape[1:-1], *kernel.shape[:-2]),
        *(*window.strides, *lows, *highs, *window.dilation),
    )
    products = math.prod(y.shape) * math.prod(kernel.shape[:-1])
    return _call(member, kernel.dtype, products, spec, first, second, result)


def contraction(
    x: Float[Array, "..."], y: Float[Array, "..."], *, spec: str, **_
) -> Float[Array, "..."] | None:
    """See `genjax.nn.products.contraction`.

    oneDNN multiplies matrices of any strides, so nothing is transposed where the rows, columns and
    summed indices of a product each lie in memory like one; elsewhere the operands are put in order
    first.
    """
    operands, out = spec.split("->")
    a, b = operands.split(",")
    shared = "".join(i for i in out if i in a and i in b)
    rows = "".join(i for i in a if i in out and i not in b)
    columns = "".join(i for i in b if i in out and i not in a)
    summed = "".join(i for i in a if i in b and i not in out)
    sizes = dict(zip(a + b, x.shape + y.shape, strict=True))
    if not all(sizes.values()):
        return None
    found = _product(x, y, (a, b, out), (shared, rows, summed, columns), sizes)
    if found is not None:
        return found
    left, right, made = shared + rows + summed, shared + summed + columns, shared + rows + columns
    x, y = (v.transpose([o.index(i) for i in n]) for v, o, n in ((x, a, left), (y, b, right)))
    found = _product(x, y, (left, right, made), (shared, rows, summed, columns), sizes)
    return None if found is None else found.transpose([made.index(index) for index in out])


def _product(x, y, terms, groups, sizes) -> Array | None:
    """The product, if each group of indices lies in all arrays like one, but the shared ones."""
    strides = [_strides(term, sizes) for term in terms]
    shared, *single = groups
    batch = [index for index in shared if sizes[index] > 1]
    steps = [[own[index] for index in batch] for own in strides]
    lengths = [sizes[index] for index in batch]
    for group, holders in zip(single, ((0, 2), (0, 1), (1, 2)), strict=True):
        kept = [index for index in group if sizes[index] > 1]
        for outer, inner in itertools.pairwise(kept):
            if any(strides[h][outer] != strides[h][inner] * sizes[inner] for h in holders):
                return None
        lengths.append(math.prod(sizes[index] for index in group))
        for holder in holders:
            steps[holder].append(strides[holder][kept[-1]] if kept else 0)
    left, right, out = (
        _filled(own, count) for own, count in zip(steps, (*lengths[-2:], lengths[-1]), strict=True)
    )
    spec = (len(batch), *lengths, *left, *right, *out)
    y = y.astype(x.dtype) if batch else y  # a matrix is rounded on the way into its layout
    result = jax.ShapeDtypeStruct([sizes[index] for index in terms[2]], jnp.float32)
    return _call(PRODUCT, y.dtype, math.prod(sizes.values()), spec, x, y, result)


def _filled(steps: list[int], columns: int) -> list[int]:
    """The strides of a matrix; 0 is of one row or one column, which lies as if by itself."""
    row, column = steps[-2], steps[-1] or 1
    return [*steps[:-2], row or columns * column, column]


def _strides(term: str, sizes: dict[str, int]) -> dict[str, int]:
    """How far apart two neighbours along each index are in memory."""
    step, found = 1, {}
    for index in reversed(term):
        found[index] = step
        step *= sizes[index]
    return found


def _call(
    member: int, kernel: jnp.dtype, products: int, spec: tuple[int, ...], x: Array, y: Array, result
) -> Array | None:
    types = [TYPES.get(jnp.dtype(dtype)) for dtype in (x.dtype, kernel)]
    if isinstance(_used, Unavailable) or None in types or not cpu_flags() & CPU_FLAGS[types[0]]:
        return None
    spec = (member, *types, products, *spec)
    if (name := _used.implementation(spec)) == "" or "ref" in name:
        return None
    call = jax.ffi.ffi_call(_used.target, jax.ShapeDtypeStruct(result.shape, result.dtype))
    return call(x, y, spec=np.array(spec, np.int64))
