"""What can be wrong with a subject."""

from sae_pipeline.store.errors import PipelineError


class SubjectError(PipelineError):
    """A subject model, its tokenizer or one of its sites cannot be used; the message says what to change."""
