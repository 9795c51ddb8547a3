"""How the CPU multiplies matrices: by which library in float32, and whether it does so in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor


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
    a, b = _trial()
    return float((a @ b.t() - a.double() @ b.double().t()).abs().max())


def _trial() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(256, 512, generator=generator), torch.randn(256, 512, generator=generator)


def screening_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what precision scores are screened for parameters of `dtype`: bfloat16 for float32 where the CPU has it."""
    return torch.bfloat16 if dtype == torch.float32 and has_bfloat16_products() else dtype


@cache
def has_bfloat16_products() -> bool:
    """Whether the CPU has instructions that multiply bfloat16 and sum in float32, and PyTorch's product uses them.

    Where it has not, PyTorch's product is right but slower than in float32. A trial product shows that sums are kept
    in float32: its error is that of rounding the result.
    """
    able: dict[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # PyTorch before 2.10 cannot tell: then float32
    used = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (used and (able.get("avx512_bf16") or able.get("amx_bf16"))):
        return False
    a, b = (matrix.bfloat16() for matrix in _trial())
    exact = a.double() @ b.double().t()
    return bool(((a @ b.t()).double() - exact).abs().max() <= torch.finfo(torch.bfloat16).eps * exact.abs().max())
