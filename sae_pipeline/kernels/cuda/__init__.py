"""The TopK training step on a GPU: Triton kernels, and a step that never waits for the device.

Nothing here imports Triton before `triton_kernels` is called; `step` is tested with the kernels' PyTorch references.
"""

from __future__ import annotations

from importlib.util import find_spec

from sae_pipeline.kernels.cuda.interface import Kernels
from sae_pipeline.kernels.cuda.step import handles, step

__all__ = ["handles", "has_triton", "step", "triton_kernels"]


def has_triton() -> bool:
    """Whether Triton can be imported; it is not imported to find out."""
    return find_spec("triton") is not None


def triton_kernels() -> Kernels:
    """The kernels, compiled at their first call for the GPU the tensors are on."""
    from sae_pipeline.kernels.cuda import decoding, selection, updating

    return Kernels(
        selection.select_screened,
        decoding.decode,
        updating.segment_sums,
        updating.squares,
        updating.update_rows,
        updating.update_vector,
    )
