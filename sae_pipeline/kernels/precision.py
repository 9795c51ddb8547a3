"""Which library multiplies float32 matrices on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fast_float32_matmul() -> Iterator[str]:
    """Use oneDNN's float32 product inside the block where it is as accurate as MKL's; yields the precision in force.

    PyTorch takes oneDNN at matmul precision "medium", on some CPUs about twice as fast and just as exact; on others
    "medium" means bfloat16, which a trial product gives away. The setting is global to the process and put back after.
    """
    before = torch.get_float32_matmul_precision()
    exact = _error()
    torch.set_float32_matmul_precision("medium")
    try:
        if _error() > 2 * exact:
            torch.set_float32_matmul_precision(before)
        yield torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(before)


def _error() -> float:
    """Largest error of a product of seeded matrices large enough for the fast path to be taken."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 512, generator=generator) for _ in range(2))
    return float((a @ b.t() - a.double() @ b.double().t()).abs().max())
