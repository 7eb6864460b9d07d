"""What the C library does with memory that is freed. Apart, since commands need it before torch is imported."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters of `mallopt`, of glibc's malloc.h."""
LARGEST_KEPT = 2**28
"""Bytes of a block that still counts as one of many; a larger one goes back to the system at once."""


def keep_freed_memory() -> None:
    """Keep memory that is freed for the next tensor, as PyTorch does on accelerators.

    glibc gives large blocks back to the system, which hands them out again page by page, each set to zero and mapped
    in turn, for every tensor that a network makes and frees on a CPU. For programs that own their process. Does
    nothing where the C library is another.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
