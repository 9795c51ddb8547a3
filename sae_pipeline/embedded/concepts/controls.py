"""What a probe's score is to be held against: the token alone, everything linear, and labels without a meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from sae_pipeline.embedded.concepts.logistic import LogisticFit, cross_entropy, fit_logistic
from sae_pipeline.embedded.concepts.probe_set import TEST, TRAIN, Flags, Ints, ProbeSet
from sae_pipeline.embedded.concepts.sampling import generator

Floats = NDArray[np.float64]

L2_GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
VALIDATION_SHARE = 0.25
PERMUTATIONS = 8
LEXICAL_AUC = 0.95
HARD_AUC = 0.85


@dataclass(frozen=True)
class Score:
    """A probe on the test rows of a task.

    Attributes:
        cross_entropy: mean of -ln P(label), in nats; ln 2 without knowledge of balanced labels.
        standard_error: of the cross-entropy; documents are its units.
        accuracy: share of rows whose label has P > 1/2; a tie counts half.
        auc: chance that a positive row has a higher P than a negative one; a tie counts half.
    """

    cross_entropy: float
    standard_error: float
    accuracy: float
    auc: float


@dataclass(frozen=True)
class Controls:
    """Controls of one task.

    Attributes:
        token: P(label | token id), from counts of the training rows.
        token_pair: the same given the token before, too.
        linear: logistic regression on the activations.
        permuted: the same fitted on permuted training labels: the mean of `PERMUTATIONS` fits, whose spread gives the
            standard error.
        l2: penalty of both, chosen on a part of the training documents.
    """

    token: Score
    token_pair: Score
    linear: Score
    permuted: Score
    l2: float

    @property
    def lexical(self) -> bool:
        """Whether the token alone solves the task: an AUC of `LEXICAL_AUC` or more."""
        return self.token.auc >= LEXICAL_AUC

    @property
    def hard(self) -> bool:
        """Whether all activations together do poorly: a linear AUC below `HARD_AUC`."""
        return self.linear.auc < HARD_AUC


def fit_controls(probe_set: ProbeSet, task: int, x_ud: NDArray[np.floating], *, seed: int = 0) -> Controls:
    """Fit the controls of one task on its training rows and score them on its test rows.

    Args:
        probe_set: the tasks.
        task: index of the task.
        x_ud: activations at `probe_set.places`, `[places, width]`.
        seed: of the choice of validation documents and of the permutation.
    """
    train, test = probe_set.rows(task, TRAIN), probe_set.rows(task, TEST)
    label, document, place = probe_set.label_r, probe_set.document_r, probe_set.places.place_r
    token_logit, pair_logit = _count_logits(probe_set, train, test)
    x_train, x_test = _standardised(x_ud[place[train]], x_ud[place[test]])
    random = generator(seed, probe_set.tasks[task].name)
    l2 = choose_l2(x_train, label[train], document[train], random)

    def scored(logit_n: Floats) -> Score:
        return score(logit_n, label[test], document[test])

    def linear(train_label: Flags) -> Score:
        return scored(fit_logistic(x_train, train_label, l2).logit(x_test))

    return Controls(
        token=scored(token_logit),
        token_pair=scored(pair_logit),
        linear=linear(label[train]),
        permuted=_mean([linear(random.permutation(label[train])) for _ in range(PERMUTATIONS)]),
        l2=l2,
    )


def score(logit_n: Floats, label_n: Flags, document_n: Ints) -> Score:
    """Score logits against labels; rows of one document are one unit of the standard error."""
    loss_n = cross_entropy(logit_n, label_n)
    n, mean = loss_n.size, float(loss_n.mean())
    by_document = np.bincount(document_n, weights=loss_n - mean)
    right_n = np.where(logit_n == 0, 0.5, (logit_n > 0) == label_n)
    n_positive = int(label_n.sum())
    ranks = rankdata(logit_n)[label_n].sum() - n_positive * (n_positive + 1) / 2
    return Score(
        cross_entropy=mean,
        standard_error=float(np.sqrt((by_document**2).sum()) / n),
        accuracy=float(right_n.mean()),
        auc=float(ranks / (n_positive * (n - n_positive))),
    )


def _mean(scores: Sequence[Score]) -> Score:
    values = np.array([(one.cross_entropy, one.accuracy, one.auc) for one in scores])
    nats, accuracy, auc = values.mean(axis=0).tolist()
    return Score(nats, float(values[:, 0].std(ddof=1) / np.sqrt(len(scores))), accuracy, auc)


def choose_l2(x_nd: Floats, label_n: Flags, document_n: Ints, random: np.random.Generator) -> float:
    """The penalty of `L2_GRID` with the lowest loss on a part of the documents when fitted on the others.

    Where one of the two parts lacks a label it is the strongest penalty.
    """
    documents = random.permutation(np.unique(document_n))
    aside = np.isin(document_n, documents[: max(1, round(VALIDATION_SHARE * documents.size))])
    if min(_rarer(label_n[aside]), _rarer(label_n[~aside])) == 0:
        return L2_GRID[0]
    fit: LogisticFit | None = None
    losses = []
    for l2 in L2_GRID:
        fit = fit_logistic(x_nd[~aside], label_n[~aside], l2, start=fit)
        losses.append(cross_entropy(fit.logit(x_nd[aside]), label_n[aside]).mean())
    return L2_GRID[int(np.argmin(losses))]


def _rarer(label_n: Flags) -> int:
    return min(int(label_n.sum()), int((~label_n).sum()))


def _standardised(train_nd: NDArray[np.floating], test_nd: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Both in units of the training rows' standard deviation around their mean."""
    train = train_nd.astype(np.float64)
    mean_d, sd_d = train.mean(axis=0), train.std(axis=0)
    sd_d[sd_d == 0] = 1.0
    test = test_nd.astype(np.float64)
    return (train - mean_d) / sd_d, (test - mean_d) / sd_d


def _count_logits(probe_set: ProbeSet, train: Ints, test: Ints) -> tuple[Floats, Floats]:
    """Logits of the test rows from counts in the training rows: given the token, and given it and the one before.

    One row of each label is added to every token's counts (Laplace), and two rows with the token's probability to
    every pair's.
    """
    label = probe_set.label_r[train].astype(np.float64)
    token = probe_set.token_r
    pair = token + (probe_set.previous_token_r + 1) * (int(token.max(initial=0)) + 1)
    by_token = _smoothed(token[train], label, token[test], np.full(test.size, 0.5))
    by_pair = _smoothed(pair[train], label, pair[test], by_token)
    return _logit(by_token), _logit(by_pair)


def _smoothed(known: Ints, label: Floats, wanted: Ints, prior: Floats) -> Floats:
    """P(label = 1 | key) of the wanted keys from counts of the known ones and two more rows with the prior."""
    keys, key_n = np.unique(known, return_inverse=True)
    positive, total = np.bincount(key_n, weights=label), np.bincount(key_n)
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    seen = keys[at] == wanted
    return np.asarray((np.where(seen, positive[at], 0.0) + 2 * prior) / (np.where(seen, total[at], 0) + 2))


def _logit(p: Floats) -> Floats:
    return np.asarray(np.log(p) - np.log1p(-p))
