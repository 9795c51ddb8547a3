"""Identity: what a stage's result depends on, as one hash. It names folders and is the Dagster data version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

VERSIONS: Final[dict[str, int]] = {
    "tokens": 1,
    "activations": 1,
    "evaluation_set": 1,
    "dataset": 1,
    "autoencoder": 1,
    "codes": 1,
    "eval_reconstruction": 3,
    "eval_density": 1,
    "eval_downstream": 2,
    "eval_progressive": 2,
    "eval_concentration": 2,
    "eval_ablation": 2,
    "eval_shrinkage": 2,
    "eval_explanations": 2,
    "eval_examples": 1,
    "eval_antipodal": 1,
    "eval_stability": 1,
    "eval_context_length": 1,
    "probe_set": 1,
    "eval_probes": 2,
    "champion": 2,
    "evaluation_table": 1,
    "scaling": 1,
    "report": 1,
}
"""Raise a stage's number by hand when its results change for the same configuration."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def lineage_record(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """The record that is hashed: stage, version, determining configuration, identities of the inputs."""
    return {"stage": stage, "version": version, "config": dict(config), "inputs": dict(inputs)}


def identity_of(record: Mapping[str, Any]) -> str:
    """Hex sha256 of a lineage record."""
    return hashlib.sha256(canonical_json(record).encode()).hexdigest()
