"""Memory of large images goes back to the system as soon as it is free.

glibc takes large blocks from the system and gives them back, but learns from each that is freed to keep blocks of its
size, up to 32 MiB, for itself (mallopt(3), M_MMAP_THRESHOLD). Pillow's blocks are of 16 MiB: after a few images a
process holds several in heaps that nobody uses, and a limit meant for one ends it.
"""

from __future__ import annotations

import ctypes

#: <malloc.h>
M_MMAP_THRESHOLD = -3
THRESHOLD_BYTES = 2**20


def give_back_large_blocks() -> bool:
    """From here on, for this process. Whether its C library can be told so: glibc can."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES) == 1
