"""Autoencoders that differ in nothing but their seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sae_pipeline.study.autoencoder_spec import AutoencoderSpec

STABILITY: Final = "stability"
"""Name of the metric that compares an autoencoder with its siblings."""


def siblings(specs: Mapping[str, AutoencoderSpec], key: str) -> dict[int, str]:
    """Keys of the siblings of an autoencoder by their seeds, in the order of the seeds.

    Args:
        specs: the autoencoders of its site by key.
        key: the autoencoder.
    """
    own = specs[key]
    found: dict[int, str] = {}
    for other in specs.values():
        if other.seed != own.seed and other.model_copy(update={"key": key, "seed": own.seed}) == own:
            found.setdefault(other.seed, other.key)
    return dict(sorted(found.items()))
