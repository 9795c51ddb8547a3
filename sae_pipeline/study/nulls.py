"""Null controls: data from which nothing about a trained model can be learnt, and what they are called everywhere."""

from __future__ import annotations

from typing import Final

NULL: Final = "null"
"""Key, in an autoencoder's lineage record and in tables, of the null control it was trained on; absent where none."""


def null_control(weights: str | None, dataset: str | None) -> str | None:
    """Name a null control, e.g. `untrained subject` or `gaussian_cov dataset`.

    Args:
        weights: `subject.weights` of the study.
        dataset: `dataset.null` of the study.

    Returns:
        Its name; None where neither is set: the data are those of a trained model.
    """
    parts = [f"{weights} subject" if weights else None, f"{dataset} dataset" if dataset else None]
    return ", ".join(part for part in parts if part) or None
