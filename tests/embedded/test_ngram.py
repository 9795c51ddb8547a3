"""The Kneser-Ney baseline against a slow one written from the formulas."""

import math
from collections import Counter

import numpy as np
import pytest

from sae_pipeline.embedded.ngram import NGram

VOCABULARY = 6


class Slow:
    """Chen and Goodman's interpolated modified Kneser-Ney by dictionaries."""

    def __init__(self, stream, order):
        self.levels = {}
        grams = Counter(tuple(stream[i : i + order]) for i in range(len(stream) - order + 1))
        for length in range(order, 0, -1):
            self.levels[length] = (grams, self.discounts(grams))
            grams = Counter(gram[1:] for gram in grams)

    @staticmethod
    def discounts(grams):
        of = Counter(grams.values())
        y = of[1] / max(1, of[1] + 2 * of[2])
        clamp = lambda c: min(c, max(0.0, c - (c + 1) * y * of[c + 1] / max(1, of[c])))  # noqa: E731
        return {c: clamp(min(c, 3)) for c in set(grams.values())}

    def p(self, token, history):
        if len(history) + 1 not in self.levels:
            return 1 / VOCABULARY
        grams, discounts = self.levels[len(history) + 1]
        after = {gram[-1]: count for gram, count in grams.items() if gram[:-1] == history}
        lower = self.p(token, history[1:]) if history else 1 / VOCABULARY
        if not after:
            return lower
        total, left = sum(after.values()), sum(discounts[count] for count in after.values())
        seen = after[token] - discounts[after[token]] if token in after else 0
        return seen / total + left / total * lower


@pytest.fixture(scope="module")
def stream():
    generator = np.random.default_rng(0)
    ids = [0]
    for draw in generator.random(600):  # each token leans on the last two
        ids.append((ids[-1] * 2 + ids[-2] + (draw > 0.6) if len(ids) > 1 else 1) % (VOCABULARY - 1))
    return np.asarray(ids)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_formulas(stream, order):
    document = np.random.default_rng(1).integers(VOCABULARY, size=60)  # token 5 never occurs in the stream
    slow = Slow(stream.tolist(), order)
    expected = [
        slow.p(int(document[t]), tuple(document[max(0, t - order + 1) : t].tolist())) for t in range(1, document.size)
    ]
    found = NGram(stream, VOCABULARY, order=order)
    np.testing.assert_allclose(found.probabilities(document), expected, rtol=1e-12)
    assert found.nats_per_token([document]) == pytest.approx(-np.mean(np.log(expected)), rel=1e-12)


def test_probabilities_sum_to_one_after_any_history(stream):
    model = NGram(stream, VOCABULARY, order=3)
    for history in [(0, 1), (1, 2), (5, 5), (3, 5), (4, 0)]:
        total = sum(model.probabilities(np.array([*history, token]))[-1] for token in range(VOCABULARY))
        assert total == pytest.approx(1, rel=1e-12)


def test_longer_histories_help_where_they_tell_something(stream):
    """Here two tokens tell most of the third, and one tells nothing."""
    train, held_out = stream[:500], [stream[500:]]
    unigram, trigram = (NGram(train, VOCABULARY, order=order).nats_per_token(held_out) for order in (1, 3))
    assert math.log(VOCABULARY) > unigram > trigram + 0.5


def test_what_cannot_be_counted_is_refused(stream):
    with pytest.raises(ValueError, match="do not fit 62 bits"):
        NGram(stream, 2**16, order=5)
    with pytest.raises(ValueError, match="hold no 5-gram"):
        NGram(stream[:4], VOCABULARY, order=5)
