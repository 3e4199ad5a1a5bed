"""The heap of the process as programs on the CPU want it: kept, and in large pages.

XLA allocates the arrays of a program anew whenever it runs, hundreds of megabytes of them, and the
C library gives so large ones back to the system at once. So each run touched each of its pages as
for the first time: a quarter of the time of a U-Net's step (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import os
import platform

LARGE = 1 << 21  # bytes of a large page
MOST = 8 << 30  # bytes of the heap that are to be in large pages
# Names of the parameters of mallopt, in malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX, MXFAST = -1, -4, -8, 1
HUGEPAGE = 14  # an advice of madvise, in sys/mman.h


def keep_heap() -> bool:
    """Keeps what is freed in the process, in one heap, which begins with room in large pages.

    Nothing is taken from the system by that before it is used; from then on the process stays as
    large as it was once. Call it before JAX's backend starts, as its threads have their own heaps
    from then on. Returns whether the C library is one that can be told so (glibc).

    Small pieces are joined with their neighbours as soon as they are freed: else the next large
    allocation does it for all of them, while every thread waits.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for parameter, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (ARENA_MAX, 1), (MXFAST, 0)):
        if not libc.mallopt(parameter, value):
            return False
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = min(MOST, memory // 4)
    begin = libc.malloc(size)
    if begin:
        first = -(-begin // LARGE) * LARGE
        libc.madvise(first, (begin + size - first) // LARGE * LARGE, HUGEPAGE)
        libc.free(begin)
    return True
