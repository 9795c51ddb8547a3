"""Keep freed memory in the process: large tensors that come and go must not be paged in anew each time."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1


def reuse_freed_memory() -> bool:
    """Tell glibc to serve large blocks from the heap and never to shrink it; False where there is no glibc.

    By default every block above 32 MiB is mapped and unmapped by the kernel; its page faults are a good part of a small
    model's forward on CPU (measured by `benchmarks/page_faults.py`). The price: memory stays at its peak until the
    process ends. Call it at the start of a process; results do not change.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, 64 << 20))
    return all([mallopt(name, value) == 1 for name, value in settings])
