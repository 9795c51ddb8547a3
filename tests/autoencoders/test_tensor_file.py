"""Tensors written without a copy, against the safetensors package's own writer."""

from __future__ import annotations

import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_pipeline.autoencoders import safetensors_parts

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bfloat16])
NAMES = st.text('abzW_.é☃"\\0', min_size=1, max_size=6)
SHAPES = st.lists(st.integers(0, 5), max_size=3)


@settings(deadline=None, max_examples=60)
@given(
    tensors=st.dictionaries(NAMES, st.tuples(DTYPES, SHAPES), max_size=5),
    metadata=st.none() | st.dictionaries(NAMES, NAMES, min_size=1, max_size=1),
)
def test_the_bytes_are_those_of_the_package(
    tensors: dict[str, tuple[torch.dtype, list[int]]], metadata: dict[str, str] | None
) -> None:
    made = {name: torch.randint(-9, 9, shape).to(dtype) for name, (dtype, shape) in tensors.items()}
    assert b"".join(safetensors_parts(made, metadata)) == safetensors.torch.save(made, metadata)


def test_parts_are_the_tensors_memory() -> None:
    weights = torch.zeros(3, 4)
    _, part = safetensors_parts({"weights": weights})
    weights.fill_(1.0)
    assert bytes(part) == weights.numpy().tobytes()
