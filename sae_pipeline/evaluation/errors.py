"""What can go wrong in evaluation."""

from sae_pipeline.store import PipelineError


class EvaluationError(PipelineError):
    """An evaluation cannot be made as asked; the message says what to change."""


class CacheMismatch(EvaluationError):
    """A code cache belongs to another autoencoder or another evaluation set than the one it is used with."""
