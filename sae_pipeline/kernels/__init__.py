"""Training steps of sparse autoencoders: a dense reference and a sparse CPU step that equals it."""

from sae_pipeline.kernels.activations import Activation, ReLU, TopK
from sae_pipeline.kernels.dispatch import train_step
from sae_pipeline.kernels.objective import Forward, Losses, Objective, Pass
from sae_pipeline.kernels.optimiser import Optimiser
from sae_pipeline.kernels.pairs import Support
from sae_pipeline.kernels.precision import fast_float32_matmul
from sae_pipeline.kernels.screening import ways
from sae_pipeline.kernels.state import Parameters, TrainState

__all__ = [
    "Activation",
    "Forward",
    "Losses",
    "Objective",
    "Optimiser",
    "Parameters",
    "Pass",
    "ReLU",
    "Support",
    "TopK",
    "TrainState",
    "fast_float32_matmul",
    "train_step",
    "ways",
]
