"""What a training step minimises, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sae_pipeline.kernels.activations import Activation


@dataclass(frozen=True)
class Objective:
    """L = s · mean_b ‖x̂−x‖² + l1 · √s · mean_b Σ z + auxk_alpha · AuxK, with s = `loss_scale`.

    s is one over the total variance E‖x−x̄‖² of the dataset, fixed for the run: the first term is the NMSE in
    expectation, and l1 means the same whatever the scale of the data (as if it were scaled to unit total variance).
    AuxK is Gao et al. 2024 §A.2; it is off where `auxk_k` is 0. A latent is dead once it has not fired in
    `dead_after_tokens` training tokens, the present batch included.
    """

    activation: Activation
    loss_scale: float
    auxk_k: int
    auxk_alpha: float
    dead_after_tokens: int


class Losses(NamedTuple):
    """Unweighted terms of one step as scalars on the device: NMSE-like, AuxK, √s · mean Σ z, and mean L0."""

    reconstruction: Tensor
    auxk: Tensor
    l1: Tensor
    l0: Tensor
