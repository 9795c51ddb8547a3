"""The dataset stage: normaliser, exact statistics, and the seeded batches that training sees."""

from sae_pipeline.dataset.build import audit_frame, build_dataset
from sae_pipeline.dataset.dataset import Batch, Dataset
from sae_pipeline.dataset.drawn_set import DrawnSet
from sae_pipeline.dataset.gaussian import Gaussian
from sae_pipeline.dataset.geometric_median import geometric_median
from sae_pipeline.dataset.mixing import Mixing, measure_mixing
from sae_pipeline.dataset.normaliser import Normaliser, Scale, default_normaliser
from sae_pipeline.dataset.order import ReadOrder
from sae_pipeline.dataset.statistics import Statistics

__all__ = [
    "Batch",
    "Dataset",
    "DrawnSet",
    "Gaussian",
    "Mixing",
    "Normaliser",
    "ReadOrder",
    "Scale",
    "Statistics",
    "audit_frame",
    "build_dataset",
    "default_normaliser",
    "geometric_median",
    "measure_mixing",
]
