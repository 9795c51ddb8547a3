"""Ground truth: was a dictionary found that is known, and do latents fire where its features are?

On planted rows (`dataset.planted`) every feature has a direction and every row a list of the features in it. A feature
counts as found by the latent that the best one-to-one matching of directions gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_pipeline.autoencoders import Autoencoder, Codes
from sae_pipeline.dataset.planted import Planted
from sae_pipeline.evaluation.errors import EvaluationError
from sae_pipeline.measures.directions import Nearest, best_matching, random_directions

FloatArray = NDArray[np.float64]

_ROWS_AT_ONCE: Final = 8192


@dataclass(frozen=True)
class GroundTruth:
    """What an autoencoder found of f true features; n latents, m rows.

    Attributes:
        latent_f: the latent of each feature in the matching with the largest sum of |cosine| (Hungarian algorithm), −1
            for features that are left over because there are fewer latents.
        cosine_f: their |cosine|, 0 for features left over.
        precision_f: share of the rows on which that latent fires that hold the feature; NaN if it never fires.
        recall_f: share of the rows that hold the feature on which it fires; NaN if no row does.
        latent_cosine_n: |cosine| of each latent with the true direction nearest to it.
        chance: `mcc` of as many random directions.
    """

    latent_f: NDArray[np.int64]
    cosine_f: FloatArray
    precision_f: FloatArray
    recall_f: FloatArray
    f1_f: FloatArray
    latent_cosine_n: FloatArray
    chance: float

    @property
    def mcc(self) -> float:
        """Mean of `cosine_f`: 1 where every true direction was found. The sign of a direction does not count."""
        return float(self.cosine_f.mean())

    @property
    def f1(self) -> float:
        """Mean F1 of the features that any row holds: 1 where latents fire where their features are, and only there."""
        return float(np.nanmean(self.f1_f))

    @property
    def latent_match(self) -> float:
        """Mean of `latent_cosine_n`: 1 where no latent is anything but a true direction."""
        return float(self.latent_cosine_n.mean())


def compare_with_planted(autoencoder: Autoencoder, planted: Planted, *, seed: int = 0) -> GroundTruth:
    """Hold an autoencoder against rows whose dictionary is known, best rows that it was not trained on.

    Args:
        autoencoder: trained on rows of the same dictionary.
        planted: the rows; they go through its normaliser first.
        seed: of the random directions.

    Raises:
        EvaluationError: rows of another width than the autoencoder's, or none.
    """
    d = autoencoder.config.d
    if not len(planted.rows_md) or planted.rows_md.shape[1] != d:
        raise EvaluationError(f"the autoencoder reads rows of {d} values, not {tuple(planted.rows_md.shape)}")
    true_fd = planted.dictionary_fd
    if autoencoder.normaliser.per_token:  # it takes each token's mean out, and with it that of every direction
        true_fd = true_fd - true_fd.mean(1, keepdim=True)
    W_dec = autoencoder.W_dec.cpu()
    latent_f, cosine_f = (found.numpy() for found in best_matching(true_fd, W_dec, absolute=True))
    random_nd = random_directions(len(W_dec), d, seed)
    precision_f, recall_f, f1_f = _support(autoencoder, planted, latent_f)
    return GroundTruth(
        latent_f, cosine_f, precision_f, recall_f, f1_f,
        latent_cosine_n=np.maximum(*(Nearest.of(W_dec, sign * true_fd).cosine_n.numpy() for sign in (1, -1))),
        chance=float(best_matching(true_fd, random_nd, absolute=True)[1].mean()),
    )  # fmt: skip


def support_scores(codes: Codes, true_mf: Tensor, latent_f: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of each feature by whether its latent fires and the feature is there: [3, f] of both, latent, feature.

    Args:
        codes: the codes of m rows.
        true_mf: the features' true activations [m, f]; what is not 0 is there.
        latent_f: the latent that stands for each feature, or −1.
    """
    there_mf = (true_mf != 0).cpu().numpy()
    row_p = torch.repeat_interleave(torch.arange(len(codes)), codes.l0_b.cpu()).numpy()
    order = np.argsort(latent_f, kind="stable")
    fired_p = codes.fired.cpu().numpy()
    place_p = np.searchsorted(latent_f, fired_p, sorter=order).clip(max=len(order) - 1)
    feature_p = order[place_p]
    stands_p = latent_f[feature_p] == fired_p
    row_p, feature_p = row_p[stands_p], feature_p[stands_p]
    n_features = len(latent_f)
    fired_f = np.bincount(feature_p, minlength=n_features)
    both_f = np.bincount(feature_p[there_mf[row_p, feature_p]], minlength=n_features)
    return np.stack([both_f, fired_f, there_mf.sum(0)])


def _support(
    autoencoder: Autoencoder, planted: Planted, latent_f: NDArray[np.int64]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Precision, recall and F1 [f]."""
    counts = np.zeros((3, len(latent_f)), np.int64)
    parts = (torch.split(rows, _ROWS_AT_ONCE) for rows in (planted.rows_md, planted.codes_mf))
    for x_rd, true_rf in zip(*parts, strict=True):
        u_rd, _ = autoencoder.normaliser.normalise(x_rd.to(autoencoder.device))
        counts += support_scores(autoencoder.encode(u_rd), true_rf, latent_f)
    both_f, fired_f, there_f = counts
    with np.errstate(invalid="ignore"):
        f1_f = np.where(there_f > 0, 2 * both_f / (fired_f + there_f), np.nan)
        return both_f / fired_f, both_f / there_f, f1_f
