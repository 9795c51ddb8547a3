"""Triton's interpreter for the tests of the GPU kernels: the same arithmetic on CPU tensors, slowly."""

import os
import sys

import pytest
import torch

if "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
triton = pytest.importorskip("triton", reason="Triton is not installed (the extra `gpu`)")
if not triton.knobs.runtime.interpret:
    pytest.skip("Triton was imported before its interpreter could be asked for", allow_module_level=True)

from sae_pipeline.kernels.cuda import decoding, selection, updating  # noqa: E402
from sae_pipeline.kernels.cuda.interface import Kernels  # noqa: E402

INTERPRETED = Kernels(
    selection.select,
    decoding.decode,
    updating.segment_sums,
    updating.squares,
    updating.update_rows,
    updating.update_vector,
)


def close(found, expected, tolerance=None):
    tolerance = tolerance or {torch.float32: 1e-5, torch.float64: 1e-12}[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
