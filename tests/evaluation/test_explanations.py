import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.dataset import Normaliser
from sae_pipeline.evaluation.explanations import asking, matching, patterns
from sae_pipeline.evaluation.explanations.asking import Queue, subject_queue
from sae_pipeline.evaluation.explanations.corpus import Corpus
from sae_pipeline.evaluation.explanations.matching import Matcher
from sae_pipeline.evaluation.explanations.patterns import ANY, ANYWHERE, HALF, Frame, Pattern, explain
from sae_pipeline.evaluation.explanations.sampling import MIN_EXAMPLES, STRATA, Example, choose_latents
from sae_pipeline.kernels import Parameters
from sae_pipeline.study import Site
from tests.subjects.tiny_subjects import FAMILIES, POSITIONS, VOCAB, D, config_of, save_subject

PAD, BOS = 0, 99
FRAME = Frame(lead=(), padding=PAD, longest=64)


def queue_of(*neurons, **settings):
    """A queue whose latents are functions of a list of tokens."""

    def forward(ids_bl):
        return np.array([[float(neuron(tokens)) for neuron in neurons] for tokens in ids_bl.tolist()])

    return Queue(forward, **settings)


def patterns_of(neuron, *texts, frame=FRAME):
    """What is found on every token of some texts that the neuron fires on."""
    cuts = [tuple(text[: i + 1]) for text in texts for i in range(len(text))]
    examples = [Example(0, tokens, float(neuron(list(tokens)))) for tokens in cuts]
    found = explain([example for example in examples if example.value > 0], queue_of(neuron), frame)
    return [(pattern.tokens, pattern.start) for pattern in found]


def corpus_of(contexts):
    """All positions of contexts of equal length, nothing padded."""
    ids_cl = np.array(contexts, np.int64)
    context_r, position_r = (index.astype(np.int32) for index in np.nonzero(ids_cl >= 0))
    unit_r = context_r.astype(np.int64)
    return Corpus(ids_cl, context_r, position_r, unit_r, np.unique(unit_r), 0, (), PAD)


def predictions(found, contexts, slots=1):
    corpus = corpus_of(contexts)
    return Matcher.of(found, slots).predict(corpus, 0, corpus.n_rows)


def brute_force(found, contexts, slots):
    """Every pattern laid against the tokens before every row."""
    rows = []
    for text in contexts:
        for end in range(1, len(text) + 1):
            best = [0.0] * slots
            for pattern in found:
                before = end - len(pattern.tokens)
                if before < 0 or pattern.start not in (ANYWHERE, before):
                    continue
                fits = all(own in (ANY, token) for own, token in zip(pattern.tokens, text[before:end], strict=True))
                best[pattern.slot] = max(best[pattern.slot], pattern.value * fits)
            rows.append(best)
    return np.array(rows)


class TestClassicNeurons:
    def test_first_position(self):
        found = patterns_of(lambda tokens: len(tokens) == 1, [5, 6, 7], [8, 9])
        assert found == [((ANY,), 0)]
        assert predictions([Pattern(0, (ANY,), 0, 2.0)], [[4, 4, 4], [1, 2, 3]])[:, 0].tolist() == [2, 0, 0] * 2

    def test_single_token(self):
        assert patterns_of(lambda tokens: tokens[-1] == 5, [1, 5, 5, 2], [5, 3]) == [((5,), ANYWHERE)]

    def test_a_gap(self):
        def neuron(tokens):
            return len(tokens) >= 3 and tokens[-3] == 1 and tokens[-1] == 3

        assert patterns_of(neuron, [7, 1, 8, 3, 9], [1, 2, 3]) == [((1, ANY, 3), ANYWHERE)]

    def test_zero(self):
        assert patterns_of(lambda tokens: 0, [1, 2, 3]) == []
        assert explain([Example(0, (1, 2), 3.0)], queue_of(lambda tokens: 0), FRAME) == []
        assert not predictions([], [[1, 2, 3]]).any()

    def test_a_certain_token_at_the_start(self):
        found = patterns_of(lambda tokens: tokens == [4] or tokens == [4, 6], [4, 6, 4, 6])
        assert found == [((4,), 0), ((4, 6), 0)]

    def test_any_token_after_others(self):
        assert patterns_of(lambda tokens: len(tokens) > 2, [1, 2, 3, 4]) == [((ANY, ANY, ANY), ANYWHERE)]

    def test_less_than_half_is_not_enough_and_half_is(self):
        strength = {(1, 2): 1.0, (2,): 0.5, (PAD, 2): 0.5, (PAD,): 0.25}
        ask = queue_of(lambda tokens: strength.get(tuple(tokens), 0.0))
        assert explain([Example(0, (1, 2), 1.0)], ask, FRAME) == [Pattern(0, (2,), ANYWHERE, 0.5)]
        strength[2,] = 0.49
        assert explain([Example(0, (1, 2), 1.0)], ask, FRAME) == [Pattern(0, (1, 2), 0, 1.0)]


def test_an_alternative_that_a_greedy_walk_misses():
    """After c, b is a literal child, but only the wildcard leads on to a."""
    found = [Pattern(0, (1, ANY, 3), ANYWHERE, 0.7), Pattern(0, (4, 2, 3), ANYWHERE, 0.9)]
    assert predictions(found, [[1, 2, 3], [4, 2, 3], [5, 2, 3]])[[2, 5, 8], 0].tolist() == [0.7, 0.9, 0.0]


def test_of_several_leaves_the_largest_counts():
    found = [
        Pattern(0, (3,), ANYWHERE, 0.4),
        Pattern(0, (2, 3), ANYWHERE, 0.9),
        Pattern(0, (ANY, ANY, 3), ANYWHERE, 0.6),
    ]
    assert predictions(found, [[3, 3, 3], [1, 2, 3]])[:, 0].tolist() == [0.4, 0.4, 0.6, 0, 0, 0.9]


tokens_ = st.integers(0, 3)
found_ = st.lists(
    st.builds(
        Pattern,
        slot=st.integers(0, 2),
        tokens=st.lists(st.one_of(tokens_, st.just(ANY)), min_size=1, max_size=4).map(tuple),
        start=st.sampled_from([ANYWHERE, ANYWHERE, 0, 1]),
        value=st.floats(0.1, 1.0),
    ),
    max_size=12,
)
contexts_ = st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(found_, contexts_, st.integers(1, 40))
def test_the_compiled_matcher_is_the_brute_force_one(found, contexts, states_at_once):
    expected = brute_force(found, contexts, 3)
    before = matching._STATES_AT_ONCE
    matching._STATES_AT_ONCE = states_at_once
    try:
        assert predictions(found, contexts, 3).tolist() == expected.tolist()
    finally:
        matching._STATES_AT_ONCE = before


def test_rows_in_between_are_predicted_alike():
    corpus = corpus_of([[1, 2, 3, 1, 2, 3]] * 4)
    matcher = Matcher.of([Pattern(0, (2, 3), ANYWHERE, 1.0), Pattern(1, (3, ANY), ANYWHERE, 0.5)], 2)
    whole = matcher.predict(corpus, 0, corpus.n_rows)
    assert whole.any(0).all()
    assert matcher.predict(corpus, 5, 17).tolist() == whole[5:17].tolist()


def jagged(tokens):
    """A value in [0, 1) that any change of the tokens changes without a pattern."""
    return zlib.crc32(bytes(tokens)) % 1000 / 1000


@pytest.mark.parametrize("lead", [(), (BOS,)])
def test_ends_are_those_grown_token_by_token(lead):
    rng, frame = np.random.default_rng(0), Frame(lead, PAD, 64)
    texts = [(*lead, *rng.integers(1, 9, rng.integers(1, 24)).tolist()) for _ in range(40)]
    examples = [Example(0, text, 1.9 * jagged(text)) for text in texts]
    found = {end.example: end.length for end in patterns._shortest_ends(examples, queue_of(jagged), frame)}
    for example in examples:
        lengths = range(1, len(example.tokens) + 1)
        excerpts = {
            m: example.tokens[-m:] if m == len(example.tokens) else (*lead, *example.tokens[-m:]) for m in lengths
        }
        enough = [m for m in lengths if jagged(excerpts[m]) >= HALF * example.value]
        assert found[example] == enough[0]
    assert max(found.values()) > 4 and min(found.values()) == 1


def test_neither_batches_nor_order_change_the_patterns(monkeypatch):
    rng = np.random.default_rng(1)
    examples = [Example(i % 3, tuple(rng.integers(1, 5, 12).tolist()), 0.6) for i in range(30)]
    neurons = (jagged, lambda tokens: tokens[-1] / 5, lambda tokens: len(tokens) > 3)
    whole = explain(examples, queue_of(*neurons), FRAME)
    assert {pattern.slot for pattern in whole} == {0, 1, 2}
    monkeypatch.setattr(asking, "TOKENS_AT_ONCE", 7)
    monkeypatch.setattr(patterns, "EXAMPLES_AT_ONCE", 4)
    assert explain(examples[::-1], queue_of(*neurons, most_rows=3), FRAME) == whole


def test_an_excerpt_is_run_once_whoever_asks():
    queue = queue_of(lambda tokens: tokens[-1], lambda tokens: len(tokens))
    requests = [((1, 2), 0), ((1, 2), 1), ((7,), 0), ((1, 2), 1)]
    assert queue(requests).tolist() == [2, 2, 7, 2]
    assert (queue.excerpts, queue.tokens) == (2, 3)
    assert queue([]).tolist() == []


def test_the_order_of_requests_does_not_change_what_is_run_together():
    """Answers of a real model are the same bits only if its batches are."""
    rng = np.random.default_rng(0)
    requests = [(tuple(rng.integers(0, 50, rng.integers(1, 5)).tolist()), 0) for _ in range(300)]
    runs = []
    for order in (requests, requests[::-1]):
        run = []
        Queue(lambda ids_bl, run=run: (run.append(ids_bl.tolist()), np.zeros((len(ids_bl), 1)))[1], most_rows=16)(order)
        runs.append(run)
    assert runs[0] == runs[1] and len(runs[0]) > 10


def test_what_fills_the_subjects_context_stands_at_its_start():
    """There is no room for a token in front."""
    found = patterns_of(lambda tokens: len(tokens) == 3, [1, 2, 3], frame=Frame((), PAD, longest=3))
    assert found == [((ANY, ANY, ANY), 0)]


def test_the_lead_is_kept_before_every_excerpt():
    """Latents of a subject that is lost without its first token."""
    frame = Frame((BOS,), PAD, 64)

    def token(tokens):
        return tokens[0] == BOS and tokens[-1] == 5

    def first(tokens):
        return tokens[0] == BOS and len(tokens) == 2

    assert patterns_of(token, [BOS, 5, 1, 5], frame=frame) == [((5,), ANYWHERE)]
    assert patterns_of(first, [BOS, 5, 1], [BOS, 7, 7], frame=frame) == [((ANY,), 1)]
    assert patterns_of(lambda tokens: tokens == [BOS], [BOS, 5, 1], frame=frame) == [((BOS,), 0)]
    assert predictions([Pattern(0, (ANY,), 1, 1.0)], [[BOS, 5, 1]])[:, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_queue_asks_every_architecture(family, tmp_path):
    """What a latent does on the last token of an excerpt is what it does there in a run of the whole."""
    from sae_pipeline.subjects import load_subject

    subject = load_subject(config_of(save_subject(tmp_path / family, family)), root=tmp_path)
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(24, D, generator=generator)
    made = Autoencoder(
        AutoencoderConfig("topk", 24, D, 6), Parameters(W_enc, torch.zeros(24), W_enc, torch.zeros(D)),
        Normaliser("layer_norm", D),
    )  # fmt: skip
    site = Site("tiny", 1, "mlp_out")
    ids_cl = torch.randint(0, VOCAB, (2, 9), generator=generator)
    whole_cld = subject.run(ids_cl, [site])[site].float()
    expected = made.encode(made.normaliser.normalise(whole_cld.flatten(0, 1))[0]).dense(24).view(2, 9, 24)
    latents = np.array([3, 11, 20, 23])
    queue = subject_queue(subject, site, made, latents, progress=queue_of().progress)
    asked = [(c, m, s) for c in range(2) for m in range(1, 10) for s in range(4)]
    answers = queue([(tuple(ids_cl[c, :m].tolist()), s) for c, m, s in asked])
    wanted = [float(expected[c, m - 1, latents[s]]) for c, m, s in asked]
    assert answers == pytest.approx(wanted, abs=1e-4) and max(wanted) > 0.5
    assert subject.card.max_positions == POSITIONS


class TestSample:
    def test_it_is_spread_over_the_densities(self):
        counts_n = np.random.default_rng(0).permutation(np.arange(400))
        chosen = choose_latents(counts_n, 64, seed=0)
        assert len(set(chosen.tolist())) == 64 and (np.diff(chosen) > 0).all()
        frame = np.sort(counts_n[counts_n >= MIN_EXAMPLES])
        for stratum in np.array_split(frame, STRATA):
            assert np.isin(stratum, counts_n[chosen]).sum() == 64 // STRATA

    def test_it_takes_all_where_there_are_no_more(self):
        counts_n = np.array([MIN_EXAMPLES - 1, MIN_EXAMPLES, 0, 50])
        assert choose_latents(counts_n, 64, seed=0).tolist() == [1, 3]
        assert choose_latents(np.zeros(4, np.int64), 64, seed=0).tolist() == []

    @pytest.mark.parametrize("wanted", [1, 3, 9, 100])
    def test_it_has_the_size_asked_for(self, wanted):
        assert len(choose_latents(np.arange(120) + 4, wanted, seed=1)) == wanted

    def test_autoencoders_of_one_size_share_latents(self):
        """Counts that differ a little move few latents into other strata."""
        rng = np.random.default_rng(0)
        counts_n = rng.integers(4, 10_000, 2000)
        other_n = counts_n + rng.integers(0, 50, 2000)
        same = np.intersect1d(choose_latents(counts_n, 64, seed=0), choose_latents(other_n, 64, seed=0))
        assert len(same) > 48
        elsewhere = np.intersect1d(choose_latents(counts_n, 64, seed=0), choose_latents(counts_n, 64, seed=1))
        assert len(elsewhere) < 16
