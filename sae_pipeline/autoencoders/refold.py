"""The same function on rows of another scale: what a warm start needs when a normaliser was fitted anew."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sae_pipeline.dataset import Normaliser
from sae_pipeline.kernels import Parameters
from sae_pipeline.store import PipelineError

if TYPE_CHECKING:
    from sae_pipeline.autoencoders.autoencoder import Autoencoder


def refold(sae: Autoencoder, normaliser: Normaliser) -> Autoencoder:
    """The autoencoder that reads rows of another normaliser and reconstructs every raw row as before.

    Both must take the same out of each token: the factor alone differs. With r its ratio, rows, latents and offsets
    grow by r, and the weights stay: (b_enc, b_pre, threshold) ← r · (b_enc, b_pre, threshold).

    Raises:
        PipelineError: one normalises each token by itself and the other does not, or their widths differ.
    """
    mine = sae.normaliser
    if mine.per_token != normaliser.per_token or mine.d != normaliser.d:
        raise PipelineError(
            f"normaliser {normaliser.name} (d = {normaliser.d}) cannot take the place of {mine.name} (d = {mine.d}): "
            "no weights undo a scale that each token has for itself; train anew"
        )
    ratio = normaliser.factor / mine.factor
    named = sae.parameters.named()
    grown = {name: ratio * named[name] for name in ("b_enc", "b_pre", "threshold") if name in named}
    return replace(sae, parameters=Parameters.of(named | grown), normaliser=normaliser)
