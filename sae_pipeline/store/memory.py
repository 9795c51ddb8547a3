"""Keep freed memory in the process: large tensors that come and go must not be paged in anew each time."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_NEVER, _ANY_NUMBER = 2**31 - 1, 65_536
_LARGE = 32 << 20  # the largest threshold that glibc takes


def reuse_freed_memory(*, map_large: bool = False) -> bool:
    """Tell glibc to serve large blocks from the heap and never to shrink it; False where there is no glibc.

    By default large blocks are mapped and unmapped by the kernel; its page faults are a good part of a small model's
    forward on CPU (measured by `benchmarks/page_faults.py`). The price: memory stays at its peak until the process
    ends, and where many blocks of several sizes come and go, as under autograd, that peak is a multiple of what is in
    use: a hole is filled by something smaller, and the next large block needs new pages. Results do not change.

    Args:
        map_large: leave blocks above 32 MiB to the kernel: for dense training steps, whose memory would triple.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mapped = ((_M_MMAP_THRESHOLD, _LARGE), (_M_MMAP_MAX, _ANY_NUMBER if map_large else 0))
    settings = (*mapped, (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, 64 << 20))
    return all([mallopt(name, value) == 1 for name, value in settings])
