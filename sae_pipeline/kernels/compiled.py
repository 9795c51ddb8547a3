"""The compiled part, `_selection.c`: there if a C compiler was at hand when the package was installed."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

VERSION = 2  # of the functions in `_selection.c`: raised there and here whenever one changes
KEYS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # positive floats order as these integers do


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they were not built, cannot be loaded here or are of another version."""
    for path in sorted(Path(__file__).parent.glob("_selection*")):
        if path.name.removeprefix("_selection") in EXTENSION_SUFFIXES:
            try:
                found = ctypes.CDLL(str(path))
                if found.selection_version() == VERSION:
                    return _typed(found)
            except (OSError, AttributeError):  # built for another machine, or from another file
                continue
    return None


def _typed(found: ctypes.CDLL) -> ctypes.CDLL:
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    for name in ("candidates_bfloat16", "candidates_float32"):
        function = getattr(found, name)
        function.restype = integer
        function.argtypes = [pointer, integer, integer, integer, pointer, ctypes.c_float, pointer, pointer, pointer]
    found.largest_float32.restype = integer
    found.largest_float32.argtypes = [pointer, pointer, integer, integer, pointer, pointer]
    found.round_rows.restype = None
    found.round_rows.argtypes = [pointer, integer, integer, integer, pointer, integer, pointer, pointer]
    found.group_pairs.restype = integer
    found.group_pairs.argtypes = [pointer] * 4 + [integer] * 3 + [pointer] * 5
    return found


def candidates(found: ctypes.CDLL, scores_bn: Tensor, k: int, slack_b: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """`selection.candidates` for bfloat16 and float32."""
    b, n = scores_bn.shape
    function = found.candidates_bfloat16 if scores_bn.dtype == torch.bfloat16 else found.candidates_float32
    counts_b = torch.empty(b, dtype=torch.int64)
    latents = torch.empty(b * n + 1, dtype=torch.int64)  # memory that is never touched costs nothing
    kept = torch.empty(n + 1, dtype=scores_bn.dtype)
    total = function(
        scores_bn.data_ptr(), b, n, k, slack_b.data_ptr(), share,
        counts_b.data_ptr(), latents.data_ptr(), kept.data_ptr(),
    )  # fmt: skip
    return counts_b, latents[:total].clone()


def largest(found: ctypes.CDLL, indptr: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`selection.largest` for float32."""
    counts_b = torch.empty(len(indptr) - 1, dtype=torch.int64)
    places = torch.empty(len(values) + 1, dtype=torch.int64)
    total = found.largest_float32(
        indptr.data_ptr(), values.data_ptr(), len(counts_b), k, counts_b.data_ptr(), places.data_ptr()
    )
    return counts_b, places[:total]


def round_rows(found: ctypes.CDLL, rows_rd: Tensor, rounded_rd: Tensor) -> tuple[Tensor, Tensor]:
    """`screening.round_rows` from float32 to bfloat16."""
    r, d = rows_rd.shape
    norms, losses = torch.empty(r), torch.empty(r)
    found.round_rows(
        rows_rd.data_ptr(), rows_rd.stride(0), r, d, rounded_rd.data_ptr(), rounded_rd.stride(0),
        norms.data_ptr(), losses.data_ptr(),
    )  # fmt: skip
    return norms.sqrt_(), losses.sqrt_()


def grouped(
    found: ctypes.CDLL, tokens: Tensor, latents: Tensor, z: Tensor, g_pre: Tensor, part: slice
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`pairs.grouped` for float32."""
    count = part.stop - part.start
    offsets, sums = torch.empty(count + 2, dtype=torch.int64), torch.empty(count + 1)
    out = torch.empty_like(tokens), torch.empty_like(z), torch.empty_like(g_pre)
    total = found.group_pairs(
        *(tensor.data_ptr() for tensor in (latents, tokens, z, g_pre)), len(latents), part.start, count,
        *(tensor.data_ptr() for tensor in (offsets, *out, sums)),
    )  # fmt: skip
    own_tokens, own_z, own_g_pre = (tensor[:total] for tensor in out)
    return offsets[:-1], own_tokens, own_z, own_g_pre, sums[:-1]
