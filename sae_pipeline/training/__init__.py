"""Training: many autoencoders on one stream of batches, each with its own state, checkpoint and end."""

from sae_pipeline.training.audit import audit_frame
from sae_pipeline.training.held_out import HeldOut, measure
from sae_pipeline.training.loop import OnRow, train
from sae_pipeline.training.member import Member, Outcome
from sae_pipeline.training.milestones import MILESTONE_ROWS
from sae_pipeline.training.schedule import learning_rate

__all__ = [
    "MILESTONE_ROWS",
    "HeldOut",
    "Member",
    "OnRow",
    "Outcome",
    "audit_frame",
    "learning_rate",
    "measure",
    "train",
]
