"""Convolutions and products by oneDNN, called from XLA's programs on one CPU device.

XLA's own convolutions on the CPU are slower: with them a U-Net's step has half the speed in
float32, and less than a quarter in bfloat16 (docs/performance.md). `onednn.cc` is built at first
use with the installed compiler, and kept. Programs that are lowered inside `used` call it. Cases
that it does not support (other types, several devices, an export) use XLA's forms.

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
# With at least so many channels, an image's gradient under a stride is faster than by phases.
ENOUGH_CHANNELS = {0: 12, 1: 3}
CPU_FLAGS = {0: {"avx2"}, 1: {"avx512_bf16", "amx_bf16"}}  # any of these multiplies the type


class Unavailable(Exception):
    """Why oneDNN cannot be used here, and what to do about it."""


class Library(NamedTuple):
    """oneDNN, loaded and registered with XLA.

    Attributes:
      version: of oneDNN.
      target: the name under which XLA calls it; a new build has a new name.
      implementation: spec -> the names of oneDNN's implementations, "" if there is none.
    """

    version: str
    target: str
    implementation: Callable[[tuple[int, ...]], str]


_libraries: dict[str, Library] = {}  # loaded libraries, by file name
_used: Library | Unavailable = Unavailable("not asked for")  # for programs that are lowered now


@contextlib.contextmanager
def used(library: Library | Unavailable) -> Iterator[None]:
    """Makes programs that are lowered inside call `library`, or XLA's own forms if unavailable.

    Like JAX's backend, this applies to the whole process, in all of its threads. Programs that are
    already lowered do not change, neither on entry nor on exit.
    """
    global _used
    before, _used = _used, library
    try:
        yield
    finally:
        _used = before


def in_use() -> str:
    """What programs lowered now compute with: "oneDNN 3.2.0", or "XLA: " and the reason."""
    return f"XLA: {_used}" if isinstance(_used, Unavailable) else f"oneDNN {_used.version}"


def multiplies(dtype: jnp.dtype) -> bool:
    """Whether products of that type are fast here: the CPU and the library in use support them.

    XLA itself uses AMX, but not AVX512-BF16.
    """
    flags = cpu_flags() & CPU_FLAGS[TYPES[jnp.dtype(dtype)]]
    return bool(flags - {"avx512_bf16"}) or (bool(flags) and not isinstance(_used, Unavailable))


# ---- Loading


def load(folder: Path) -> Library:
    """Loads oneDNN; builds it into `folder` first if it is not there.

    Several processes may call this at once: one of them builds.

    Raises:
      Unavailable: the machine, its compiler or its libraries do not support it, or `folder` cannot
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
    compiler_version = _output([*compiler, "--version"])
    command = [
        *(*compiler, "-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-shared"),
        *("-isystem", jax.ffi.include_dir(), "-idirafter", str(include), str(SOURCE)),
        *(f"-L{library.parent}", f"-Wl,-rpath,{library.parent}", "-ldnnl", "-l:libgomp.so.1"),
    ]
    facts = (SOURCE.read_bytes(), command, compiler_version, version, jaxlib.__version__)
    key = hashlib.sha256(repr((*facts, sorted(cpu_flags()))).encode()).hexdigest()[:16]
    path = folder / f"onednn-{key}.so"
    loaded = _loaded(path, version)
    if loaded is not None:
        return loaded
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "onednn.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            loaded = _loaded(path, version)  # another process may have built it meanwhile
            if loaded is None:
                _build(command, path)
                loaded = _loaded(path, version)
    except OSError as error:
        raise Unavailable(f"oneDNN cannot be built: {error}") from error
    if loaded is None:
        raise Unavailable(f"oneDNN was built, but {path} cannot be loaded")
    return loaded


def _installed() -> tuple[Path, Path, str]:
    """oneDNN's folder of headers, library and version, as installed by pip or the system."""
    for root in map(Path, (sys.prefix, site.getuserbase(), "/usr/local", "/usr")):
        header = root / "include" / "oneapi" / "dnnl" / "dnnl_version.h"
        folders = [root / "lib", root / "lib64", root / "lib" / "x86_64-linux-gnu"]
        libraries = [path for path in (f / "libdnnl.so" for f in folders) if path.exists()]
        if not libraries or not header.exists():
            continue
        numbers = dict(re.findall(r"define DNNL_VERSION_(\w+) +(\d+)", header.read_text()))
        version = ".".join(numbers.get(part, "?") for part in ("MAJOR", "MINOR", "PATCH"))
        if numbers.get("MAJOR", "").isdigit() and int(numbers["MAJOR"]) >= 3:
            return root / "include", libraries[0].resolve(), version
    raise Unavailable("oneDNN 3 is not installed: pip install 'genjax-models[cpu]'")


def _output(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the compiler {command[0]} cannot be run: {error}") from error
    if result.returncode:
        output = " ".join((result.stderr or result.stdout).split())[:300]
        raise Unavailable(f"the compiler {command[0]} failed: {output}")
    return result.stdout


def _build(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        library = Path(folder) / path.name
        _output([*command, "-o", str(library)])
        library.replace(path)


def _loaded(path: Path, version: str) -> Library | None:
    """Loads a library and registers it with XLA; None if the file is missing or damaged."""
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
    """The flags of the first CPU in /proc/cpuinfo; empty if unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


# ---- Forms of the bilinear primitives; each returns None for cases that it does not support


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

    oneDNN multiplies matrices of any strides, so nothing is transposed if the rows, columns and
    summed indices each lie in memory like one index; else the operands are transposed first.
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
    product = _product(x, y, (a, b, out), (shared, rows, summed, columns), sizes)
    if product is not None:
        return product
    left, right, ordered = (
        shared + rows + summed,
        shared + summed + columns,
        shared + rows + columns,
    )
    x, y = (v.transpose([o.index(i) for i in n]) for v, o, n in ((x, a, left), (y, b, right)))
    product = _product(x, y, (left, right, ordered), (shared, rows, summed, columns), sizes)
    return None if product is None else product.transpose([ordered.index(index) for index in out])


def _product(x, y, terms, groups, sizes) -> Array | None:
    """The product, if each group of indices but the shared lies in memory like one, else None."""
    strides = [_strides(term, sizes) for term in terms]
    shared, *single = groups
    batch = [index for index in shared if sizes[index] > 1]
    steps = [[array_strides[index] for index in batch] for array_strides in strides]
    lengths = [sizes[index] for index in batch]
    for group, holders in zip(single, ((0, 2), (0, 1), (1, 2)), strict=True):
        longer = [index for index in group if sizes[index] > 1]
        for outer, inner in itertools.pairwise(longer):
            if any(strides[h][outer] != strides[h][inner] * sizes[inner] for h in holders):
                return None
        lengths.append(math.prod(sizes[index] for index in group))
        for holder in holders:
            steps[holder].append(strides[holder][longer[-1]] if longer else 0)
    left, right, out = (
        _filled(array_strides, count)
        for array_strides, count in zip(steps, (*lengths[-2:], lengths[-1]), strict=True)
    )
    spec = (len(batch), *lengths, *left, *right, *out)
    y = y.astype(x.dtype) if batch else y  # without a batch, the relayout of y rounds it
    result = jax.ShapeDtypeStruct([sizes[index] for index in terms[2]], jnp.float32)
    return _call(PRODUCT, y.dtype, math.prod(sizes.values()), spec, x, y, result)


def _filled(steps: list[int], columns: int) -> list[int]:
    """The strides of a matrix; 0, for a single row or column, becomes that of a dense matrix."""
    row, column = steps[-2], steps[-1] or 1
    return [*steps[:-2], row or columns * column, column]


def _strides(term: str, sizes: dict[str, int]) -> dict[str, int]:
    """The stride in memory along each index."""
    step, strides = 1, {}
    for index in reversed(term):
        strides[index] = step
        step *= sizes[index]
    return strides


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
