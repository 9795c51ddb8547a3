"""What can go wrong while activations are made."""

from sae_pipeline.store.errors import PipelineError


class ActivationError(PipelineError):
    """Activations cannot be made as asked; the message says what to change."""


class ActivationOverflow(ActivationError):
    """A finite activation is too large for the storage dtype."""
