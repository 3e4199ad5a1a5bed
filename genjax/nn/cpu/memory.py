"""A heap that suits programs on the CPU: freed memory is kept, in large pages.

Each run of a program allocates its arrays anew, hundreds of megabytes, and by default the C library
returns such large blocks to the system when they are freed. Then each run has page faults on all of
its memory: a quarter of the time of a U-Net's step (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import os
import platform

LARGE = 1 << 21  # bytes of a large page
MOST = 8 << 30  # the most bytes of the heap to put in large pages
# Names of the parameters of mallopt, in malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX, MXFAST = -1, -4, -8, 1
HUGEPAGE = 14  # an advice of madvise, in sys/mman.h


def keep_heap() -> bool:
    """Keeps freed memory in the process, in one heap that begins with space in large pages.

    The space takes no memory until it is used; afterwards the process keeps its peak size. Call
    this before JAX's backend starts, because its threads would get heaps of their own. Returns
    whether the C library supports these settings (glibc).

    Small blocks are merged with their neighbours as soon as they are freed; else the next large
    allocation merges all of them while every thread waits.
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
