"""The C library's heap, told to keep what is freed for the next step.

A training step on a CPU makes and frees hundreds of MiB of activations. glibc hands freed memory at
the heap's top back to the system, and takes large blocks from it anew; the next step then waits for
the system to clear each page again.

Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
"""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers of the two
_NEVER = -1
_LARGEST_BLOCK = 2**30  # bytes; larger ones still come from the system, and go back to it
_OWN_SETTINGS = (
    "GLIBC_TUNABLES",
    *("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_"),
)


def keep_heap() -> bool:
    """Let this process keep freed memory, and take all but huge blocks from its heap.

    Nothing is done where the environment sets glibc's allocator itself, or where there is none.

    Returns:
        Whether it was done.
    """
    if any(name in os.environ for name in _OWN_SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not on macOS, nor with musl
    if mallopt is None:
        return False
    return all(
        mallopt(option, value) == 1
        for option, value in ((_TRIM_THRESHOLD, _NEVER), (_MMAP_THRESHOLD, _LARGEST_BLOCK))
    )


def release_heap() -> None:
    """Give freed memory back to the system, once; nothing where there is no glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
