"""Writing tensors as a safetensors file without a copy of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_DTYPES = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16"}
"""In the order in which they lie in a file: wide ones first, so that all are aligned."""


def safetensors_parts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[memoryview]:
    """The bytes of a safetensors file, part after part: the header, then each tensor as it lies in memory.

    The package's own writer holds two copies of all tensors. What both write is equal byte for byte.
    """
    order = list(_DTYPES)
    ordered = sorted(tensors.items(), key=lambda pair: (order.index(pair[1].dtype), pair[0].encode()))
    header, end = dict[str, Any](), 0
    if metadata is not None:
        header["__metadata__"] = dict(metadata)
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
