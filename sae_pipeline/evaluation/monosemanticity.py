"""Monosemanticity: are the items on which a latent fires alike? Any embedding and any labels of the items will do.

    MS_j = Σ_{a<b} ã_a ã_b cos(e_a, e_b) / Σ_{a<b} ã_a ã_b

over pairs of items, with ã the latent's activations brought to 0 … 1 by their smallest and largest over all items, and
e the items' embeddings (Pach et al. 2025, arXiv 2504.02821). With embeddings of length one and S = Σ ã e both sums over
pairs follow from sums over items, so that the cost grows with the number of active latents and not with its square:

    MS_j = (‖S‖² − Σã²) / ((Σã)² − Σã²)

It is no metric of a study on text: the embeddings there are the subject's own, and an autoencoder that was fitted to
them would be measured against itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sae_pipeline.autoencoders import Codes
from sae_pipeline.evaluation.errors import EvaluationError

FloatArray = NDArray[np.float64]

_NO_PAIRS = 1e-12
"""Weight of all pairs, over (Σa)², up to which it is rounding: the latent fires on one item alone."""


class Monosemanticity:
    """The sums over items, streamed in float64; the order and size of batches do not matter.

    Holds n · e numbers. Args: n latents, e values of an embedding.
    """

    def __init__(self, n: int, e: int) -> None:
        self.items = 0
        self.active_n: NDArray[np.int64] = np.zeros(n, np.int64)
        self._weighted_ne, self._sum_n, self._square_n = np.zeros((n, e)), np.zeros(n), np.zeros(n)
        self._least_n, self._direction_e = np.full(n, np.inf), np.zeros(e)

    def update(self, codes: Codes, embedding_be: Tensor | FloatArray) -> None:
        """Add items: their codes, one of each, and their embeddings [b, e] of any length but 0.

        Raises:
            EvaluationError: numbers of items, latents or values that do not fit, or an embedding without direction.
        """
        n, e = self._weighted_ne.shape
        unit_be = _unit_rows(embedding_be, e)
        codes_bn = _matrix(codes, n, len(unit_be))
        self._weighted_ne += codes_bn.T @ unit_be
        self._sum_n += np.bincount(codes_bn.indices, codes_bn.data, n)
        self._square_n += np.bincount(codes_bn.indices, codes_bn.data**2, n)
        self.active_n += np.bincount(codes_bn.indices, minlength=n)
        np.minimum.at(self._least_n, codes_bn.indices, codes_bn.data)
        self._direction_e += unit_be.sum(0)
        self.items += len(unit_be)

    def scores(self) -> FloatArray:
        """MS of every latent [n], from −1 to 1; NaN for a latent whose activations leave no pair of items."""
        least_n = np.where((self.active_n == self.items) & (self.items > 0), self._least_n, 0.0)
        sum_n = self._sum_n - self.items * least_n
        square_n = self._square_n - 2 * least_n * self._sum_n + self.items * least_n**2
        weighted_ne = self._weighted_ne
        if least_n.any():
            weighted_ne = weighted_ne - np.outer(least_n, self._direction_e)
        length_n = np.einsum("ne,ne->n", weighted_ne, weighted_ne)
        pairs_n = sum_n**2 - square_n
        known_n = pairs_n > _NO_PAIRS * self._sum_n**2
        return np.where(known_n, (length_n - square_n) / np.where(known_n, pairs_n, 1.0), np.nan)

    def chance(self) -> float:
        """The mean cosine of two items: what a latent scores that fires everywhere alike; NaN of fewer than two."""
        if self.items < 2:
            return float("nan")
        square = float(self._direction_e @ self._direction_e)
        return (square - self.items) / (self.items * (self.items - 1))


def monosemanticity_scores(codes: Codes, embedding_me: Tensor | FloatArray, n: int) -> FloatArray:
    """The monosemanticity score of every latent [n]; see `Monosemanticity`, which also takes items in batches.

    Args:
        codes: the codes of m items.
        embedding_me: embeddings [m, e] of the items, best from another model than the one explained.
        n: number of latents.

    Raises:
        EvaluationError: numbers of items or latents that do not fit, or an embedding without direction.
    """
    measure = Monosemanticity(n, embedding_me.shape[-1])
    measure.update(codes, embedding_me)
    return measure.scores()


@dataclass(frozen=True)
class Purity:
    """Of every latent [n]: the label c* most frequent among the items on which it fires, the lower number of two.

    Attributes:
        label_n: c*; −1 for a latent that fires on nothing.
        share_n: share of the items on which it fires that are of c*; NaN for a latent that fires on nothing.
        weighted_share_n: the same share of its activation.
        chance: share of all items that are of the most frequent label.
    """

    label_n: NDArray[np.int64]
    share_n: FloatArray
    weighted_share_n: FloatArray
    chance: float


class ClassPurity:
    """Items and activation of each latent by label, streamed; order and size of batches do not matter.

    Holds 2 · n · classes numbers (Jacquier et al. 2026, arXiv 2606.27321, eq. 11). Args: n latents, number of classes.
    """

    def __init__(self, n: int, classes: int) -> None:
        self._items_nc, self._weight_nc = np.zeros((n, classes), np.int64), np.zeros((n, classes))
        self._items_c = np.zeros(classes, np.int64)

    def update(self, codes: Codes, label_b: ArrayLike) -> None:
        """Add items: their codes, one of each, and their labels [b], from 0 to classes − 1.

        Raises:
            EvaluationError: numbers of items or latents that do not fit, or a label that is none of the classes.
        """
        (n, classes), label_b = self._items_nc.shape, np.asarray(label_b)
        if label_b.size and (label_b.min() < 0 or label_b.max() >= classes):
            raise EvaluationError(f"labels from {label_b.min()} to {label_b.max()} are not 0 … {classes - 1}")
        codes_bn = _matrix(codes, n, len(label_b))
        cell_p = codes_bn.indices.astype(np.int64) * classes + np.repeat(label_b, np.diff(codes_bn.indptr))
        self._items_nc += np.bincount(cell_p, minlength=n * classes).reshape(n, classes)
        self._weight_nc += np.bincount(cell_p, codes_bn.data, n * classes).reshape(n, classes)
        self._items_c += np.bincount(label_b, minlength=classes)

    def purity(self) -> Purity:
        """What the items so far say of every latent."""
        items_n, best_n = self._items_nc.sum(1), self._items_nc.argmax(1)
        each = np.arange(len(best_n))
        with np.errstate(invalid="ignore"):
            share_n = self._items_nc[each, best_n] / items_n
            weighted_n = self._weight_nc[each, best_n] / self._weight_nc.sum(1)
        total = int(self._items_c.sum())
        chance = float(self._items_c.max() / total) if total else float("nan")
        return Purity(np.where(items_n > 0, best_n, -1), share_n, weighted_n, chance)


def class_purity(codes: Codes, label_m: ArrayLike, n: int) -> Purity:
    """How nearly each of n latents fires on items of one label alone; `ClassPurity` also takes items in batches.

    Args:
        codes: the codes of m items.
        label_m: their labels [m], numbers from 0.
        n: number of latents.

    Raises:
        EvaluationError: no items, numbers of items or latents that do not fit, or a negative label.
    """
    labels = np.asarray(label_m)
    if not labels.size:
        raise EvaluationError("class purity needs items; there are none")
    measure = ClassPurity(n, int(labels.max()) + 1)
    measure.update(codes, labels)
    return measure.purity()


def _matrix(codes: Codes, n: int, items: int) -> Any:
    """The codes as a sparse matrix [items, n] in float64 that holds active latents only."""
    from scipy.sparse import csr_array

    if len(codes) != items:
        raise EvaluationError(f"there are codes of {len(codes)} items, but {items} items; give one of each")
    latent_p, value_p = codes.fired.cpu().numpy(), codes.values[codes.values > 0].double().cpu().numpy()
    if latent_p.size and latent_p.max() >= n:
        raise EvaluationError(f"the codes name latent {latent_p.max()}, but there are {n} latents; raise n")
    indptr = np.concatenate([[0], np.cumsum(codes.l0_b.cpu().numpy())])
    return csr_array((value_p, latent_p, indptr), shape=(items, n))


def _unit_rows(embedding_be: Tensor | FloatArray, e: int) -> FloatArray:
    rows_be = torch.as_tensor(embedding_be).detach().double()
    if rows_be.ndim != 2 or rows_be.shape[1] != e:
        raise EvaluationError(f"embeddings must be [items, {e}], not {tuple(rows_be.shape)}")
    norm_b = rows_be.norm(dim=1)
    if not bool(((norm_b > 0) & norm_b.isfinite()).all()):
        raise EvaluationError("an embedding is 0 or not finite, so it has no direction; leave that item out")
    unit_be: FloatArray = (rows_be / norm_b[:, None]).cpu().numpy()
    return unit_be
