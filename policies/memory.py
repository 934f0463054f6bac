"""Large tensors that come and go: keep their memory instead of asking the kernel for it again and again."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc not to give freed memory back; whether it understood.

    By default blocks of megabytes go back to the kernel with every tensor that ends, and the next one is made of fresh
    pages, each of which costs a fault.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # not glibc
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST))
