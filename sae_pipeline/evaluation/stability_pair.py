"""The latents of two autoencoders, compared by their directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.evaluation.errors import EvaluationError
from sae_pipeline.measures.directions import Nearest, best_matching, unit_rows

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Of the latents of A [n] their counterparts among those of B [m], by decoder or by encoder rows.

    Attributes:
        nearest_cosine_n: cosine with the nearest row of B; bounds the matched one from above.
        nearest_n: which latent of B that is.
        mutual_n: whether it is the other way round the nearest of it, too.
        matched_n: counterpart in the one-to-one matching with the largest sum of cosines, −1 for latents left over;
            None where it was not asked for.
        matched_cosine_n: cosine with it, 0 for latents left over; None where it was not asked for.
    """

    nearest_cosine_n: FloatArray
    nearest_n: NDArray[np.int64]
    mutual_n: NDArray[np.bool_]
    matched_n: NDArray[np.int64] | None
    matched_cosine_n: FloatArray | None

    @classmethod
    def of(cls, a_nd: Tensor, b_md: Tensor, *, matching: bool) -> Agreement:
        """Compare rows; a row of zeros has cosine 0 with all."""
        nearest = Nearest.of(a_nd, b_md)
        matched = [tensor.numpy() for tensor in best_matching(a_nd, b_md)] if matching else [None, None]
        found = (nearest.cosine_n, nearest.of_n, nearest.mutual_n)
        return cls(*(tensor.cpu().numpy() for tensor in found), *matched)


@dataclass(frozen=True)
class Stability:
    """How the latents of an autoencoder A come back in another, B.

    Attributes:
        decoder: by decoder rows; `encoder`: by encoder rows.
        encoder_cosine_n: cosine [n] of the encoder rows of A with those of the latents nearest by decoder.
    """

    decoder: Agreement
    encoder: Agreement
    encoder_cosine_n: FloatArray

    def shared_n(self, threshold: float = 0.7) -> NDArray[np.bool_]:
        """Mask [n] of the latents that came back: mutually nearest by decoder, and decoder and encoder rows of that
        pair both at a cosine above the threshold."""
        near_n = np.minimum(self.decoder.nearest_cosine_n, self.encoder_cosine_n) > threshold
        return np.asarray(near_n & self.decoder.mutual_n)


def compare_latents(a: Autoencoder, b: Autoencoder, *, matching: bool = True) -> Stability:
    """Compare the latents of two autoencoders of one width, of which b may have other numbers of latents.

    Args:
        a: the autoencoder whose latents are looked for.
        b: the one that they are looked for in.
        matching: whether to compute the best one-to-one matching, too: time grows with the cube, memory with the
            square of the number of latents; everything else is computed in blocks.

    Raises:
        EvaluationError: they read activations of different widths.
    """
    if a.config.d != b.config.d:
        raise EvaluationError(
            f"latents of {a.config.d} and of {b.config.d} values cannot be compared; are the autoencoders of one site?"
        )
    decoder = Agreement.of(a.W_dec, b.W_dec, matching=matching)
    encoder = Agreement.of(a.W_enc, b.W_enc, matching=matching)
    counterpart_nd = unit_rows(b.W_enc)[decoder.nearest_n]
    return Stability(decoder, encoder, (unit_rows(a.W_enc) * counterpart_nd).sum(1).cpu().numpy())
