"""Scaling laws: forms, robust fits, intervals, hold-out checks, and refusals where points identify nothing."""

from sae_pipeline.scaling.fitting import Law, Points, fit_law
from sae_pipeline.scaling.forms import FORMS, LawForm
from sae_pipeline.scaling.intervals import Intervals, intervals
from sae_pipeline.scaling.result import ScalingResult, audit_draft, audit_frame, read_result, write_result
from sae_pipeline.scaling.study_fits import fit_study, scaling_points

__all__ = [
    "FORMS",
    "Intervals",
    "Law",
    "LawForm",
    "Points",
    "ScalingResult",
    "audit_draft",
    "audit_frame",
    "fit_law",
    "fit_study",
    "intervals",
    "read_result",
    "scaling_points",
    "write_result",
]
