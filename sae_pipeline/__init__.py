"""Train and judge sparse autoencoders as a data pipeline: see README.md and docs/."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_pipeline.activations.reading import SiteActivations


def open_activations(study: str, site: str, outputs: str | Path = "outputs") -> SiteActivations:
    """The activations that a study uses at a site, e.g. `open_activations("demo", "code.2.resid_post")`.

    Args:
        study: name of the study.
        site: as it is resolved: `<alias>.<layer>.<where>`.
        outputs: the output folder.

    Returns:
        `len(x)` rows of width `x.d`; `x.rows(a, b)` reads some as float32 [b - a, d], verified; `x.origin(row)` tells
        document, position and id of the token that a row belongs to.

    Raises:
        ActivationError: the study has no activations of this site; names those it has.
        NotPublished: they, or the tokens they were made from, are gone.
        Damaged: a file of theirs is not as published.
    """
    from sae_pipeline.activations.reading import SiteActivations
    from sae_pipeline.store import Outputs

    return SiteActivations.open(Outputs(Path(outputs)), study, site)
