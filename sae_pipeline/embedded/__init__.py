"""The offline default: small code models that this project trains on the user's own standard library."""

from sae_pipeline.embedded.plan import Plan

__all__ = ["Plan"]
