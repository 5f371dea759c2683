"""What malloc does with the memory that a training step frees."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of these parameters in glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocations.

    glibc maps every large block anew and returns it when it is freed, and the system clears every
    page of it again: a sixth of a ViT-B step in bf16. A process that trains needs the same blocks
    in every step. It no longer shrinks in between, and its peak grows a little.

    Returns:
        False where the C library is not glibc: nothing was changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return False
    return all(mallopt(name, value) for name, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)))
