from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_doubles import autoencoder, constant_autoencoder, make_inputs, open_draft, value_of

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.dataset import Normaliser
from sae_pipeline.evaluation import METRICS, EvaluationError, build_table, write_metric
from sae_pipeline.evaluation.explanations import asking, patterns, sampling
from sae_pipeline.evaluation.explanations import metric as explanations_metric
from sae_pipeline.evaluation.explanations.corpus import Corpus
from sae_pipeline.kernels import Parameters
from sae_pipeline.report import metric_figures
from sae_pipeline.study import Site

METRIC = METRICS["explanations"]
BOS = 7
PLANTED = {
    "single": lambda ids, i: ids[i] == 3,
    "bigram": lambda ids, i: i > 0 and (ids[i - 1], ids[i]) == (1, 2),
    "gap": lambda ids, i: i > 1 and (ids[i - 2], ids[i]) == (4, 5),
    "either": lambda ids, i: ids[i] == 6 or (i > 0 and (ids[i - 1], ids[i]) == (2, 1)),
    "first": lambda ids, i: i == 0,
    "second": lambda ids, i: i == 1,
}


@dataclass
class PlantedSet:
    """Contexts of random tokens whose activations say which n-grams end at each position."""

    ids_cl: np.ndarray
    lengths: np.ndarray
    document: np.ndarray
    detectors: tuple
    site = Site("planted", 0, "resid_post")

    @property
    def n_contexts(self):
        return len(self.ids_cl)

    @property
    def context(self):
        return self.ids_cl.shape[1]

    @property
    def d(self):
        return len(self.detectors)

    @property
    def n_rows(self):
        return int(self.lengths.sum())

    @property
    def position(self):
        return np.arange(self.context)

    @property
    def length(self):
        return self.lengths

    def ids(self, a, b):
        return torch.from_numpy(self.ids_cl[a:b])

    def mask(self, a, b):
        return torch.from_numpy(self.position < self.lengths[a:b, None])

    def rows(self, a, b):
        mask_cl = self.mask(a, b).numpy()
        context_r, position_r = np.nonzero(mask_cl)
        return activations(self.ids_cl[a:b], self.detectors)[mask_cl], self.document[a:b][context_r], position_r


def activations(ids_cl, detectors):
    values = [[[float(found(ids, i)) for found in detectors] for i in range(len(ids))] for ids in ids_cl.tolist()]
    return torch.tensor(values)


class PlantedSubject:
    """A model that is nothing but the detectors."""

    card = SimpleNamespace(vocab_size=8, max_positions=32)

    def __init__(self, detectors):
        self.detectors = detectors

    def run(self, ids_cl, sites):
        return {sites[0]: activations(ids_cl.numpy(), self.detectors)}


def planted(detectors, path, contexts=60, context=12, lead=None, **changes):
    """Inputs for one latent per detector."""
    rng = np.random.default_rng(0)
    ids_cl = rng.integers(1, 7, (contexts, context))
    if lead is not None:
        ids_cl[:, 0] = lead
    lengths = np.full(contexts, context)
    lengths[::7] = context - 3
    ids_cl[np.arange(context) >= lengths[:, None]] = 0
    evaluation_set = PlantedSet(ids_cl, lengths, np.arange(contexts) // 5, tuple(detectors))
    n = len(detectors)
    made = Autoencoder(
        AutoencoderConfig("relu", n, n), Parameters(torch.eye(n), torch.zeros(n), torch.eye(n), torch.zeros(n)),
        Normaliser("none", n),
    )  # fmt: skip
    return make_inputs(made, evaluation_set, path, subject=PlantedSubject(detectors), **changes)


def parts(inputs):
    """The corpus, the outcome and what it says of the codes: dense activations and predictions of every row."""
    corpus = Corpus.of(inputs.evaluation_set)
    counts_n = sampling.counts_of(inputs.codes, corpus.cut)
    latents_s = sampling.choose_latents(counts_n, 64, inputs.seed)
    queue = asking.subject_queue(
        inputs.subject, inputs.evaluation_set.site, inputs.autoencoder, latents_s, inputs.progress
    )
    outcome = explanations_metric._explain_and_score(inputs, corpus, latents_s, queue, 64)
    act_rs = inputs.codes.codes(0, corpus.n_rows).dense(inputs.codes.n).double().numpy()[:, latents_s]
    return corpus, outcome, act_rs, outcome.fitted.matcher.predict(corpus, 0, corpus.n_rows)


@pytest.fixture(scope="module")
def real(subject, evaluation_set, tmp_path_factory):
    """A random autoencoder at a site of the tiny subject."""
    path = tmp_path_factory.mktemp("real") / "codes"
    return make_inputs(autoencoder(n=48, k=4), evaluation_set, path, subject=subject, resamples=500)


@pytest.fixture(scope="module")
def result(real):
    return METRIC.run(real)


class TestPlanted:
    def test_detectors_of_ngrams_are_found_exactly(self, tmp_path):
        result = METRIC.run(planted(PLANTED.values(), tmp_path / "codes"))
        stats = result.latent_stats.set_index("latent")
        for latent, name in enumerate(PLANTED):
            assert stats.loc[latent, ["n2g_precision", "n2g_recall", "n2g_f1"]].tolist() == [1, 1, 1], name
        for variant in ("latent_mean", "density_weighted", "pooled"):
            assert value_of(result, "n2g_f1", variant)["value"] == 1
        assert value_of(result, "explained_code_nmse", "n2g")["value"] == pytest.approx(0, abs=1e-12)
        assert value_of(result, "explained_code_nmse", "bigram")["value"] > 0.05
        found = result.facts["explanations"]
        assert found["0"] == [{"tokens": [3], "at_start": False, "value": 1.0}]
        assert [pattern["tokens"] for pattern in found["2"]] == [[4, None, 5]]
        assert found["4"] == [{"tokens": [None], "at_start": True, "value": 1.0}]
        assert (result.facts["padding_id"], result.facts["lead"]) == (0, [])

    def test_what_one_token_decides_one_token_explains(self, tmp_path):
        result = METRIC.run(planted([PLANTED["single"]], tmp_path / "codes"))
        for baseline in ("unigram", "bigram"):
            assert value_of(result, "explained_code_nmse", baseline)["value"] == pytest.approx(0, abs=1e-12)

    def test_detectors_that_need_the_first_token(self, tmp_path):
        """Every context begins with one token: excerpts must, too, or no detector would fire."""
        detectors = [
            lambda ids, i, found=found: ids[0] == BOS and found(ids, i)
            for found in (PLANTED["single"], PLANTED["bigram"], PLANTED["second"])
        ]
        result = METRIC.run(planted(detectors, tmp_path / "codes", lead=BOS))
        assert result.facts["lead"] == [BOS]
        assert value_of(result, "n2g_f1", "latent_mean")["value"] == 1

    def test_an_unforeseen_pattern_costs_recall_alone(self, tmp_path):
        """Half of a latent's occasions happen on the scored side only."""
        inputs = planted([lambda ids, i: ids[i] == 3], tmp_path / "codes")
        rows = inputs.evaluation_set
        scored = rows.document > np.median(rows.document)
        rows.ids_cl[scored] = np.where((rows.ids_cl[scored] == 5), 4, rows.ids_cl[scored])
        rows.ids_cl[~scored] = np.where((rows.ids_cl[~scored] == 4), 5, rows.ids_cl[~scored])
        either = (lambda ids, i: ids[i] in (3, 4),)
        rows.detectors = either
        again = make_inputs(inputs.autoencoder, rows, tmp_path / "again", subject=PlantedSubject(either))
        result = METRIC.run(again)
        assert value_of(result, "n2g_precision", "pooled")["value"] == 1
        assert 0.2 < value_of(result, "n2g_recall", "pooled")["value"] < 0.8


class TestSums:
    def test_figures_are_those_of_dense_arrays(self, real, result):
        corpus, _, act_rs, predicted_rs = parts(real)
        active, foretold = act_rs[corpus.cut :] > 0, predicted_rs[corpus.cut :] > 0
        hits = (active & foretold).sum(0)
        with np.errstate(invalid="ignore"):
            precision, recall = hits / foretold.sum(0), hits / active.sum(0)
        stats = result.latent_stats
        assert stats["n2g_precision"].to_numpy() == pytest.approx(precision, nan_ok=True)
        assert stats["n2g_recall"].to_numpy() == pytest.approx(recall, nan_ok=True)
        assert value_of(result, "n2g_precision", "latent_mean")["value"] == pytest.approx(np.nanmean(precision))
        known = np.isfinite(precision)
        weighted = np.average(precision[known], weights=active.sum(0)[known])
        assert value_of(result, "n2g_precision", "density_weighted")["value"] == pytest.approx(weighted)
        pooled = value_of(result, "n2g_recall", "pooled")["value"]
        assert pooled == pytest.approx(hits.sum() / active.sum())
        assert value_of(result, "n2g_recall", "density_weighted")["value"] == pytest.approx(pooled)
        f1 = 2 * hits.sum() / (active.sum() + foretold.sum())
        assert value_of(result, "n2g_f1", "pooled")["value"] == pytest.approx(f1)
        assert 0 < pooled < 1 and not np.isnan(recall).all()

    def test_the_scale_is_least_squares(self, real):
        corpus, outcome, act_rs, predicted_rs = parts(real)
        assert (outcome.fitted.scale_s > 0).sum() > 10
        for s, scale in enumerate(outcome.fitted.scale_s):
            column = predicted_rs[: corpus.cut, [s]]
            expected = np.linalg.lstsq(column, act_rs[: corpus.cut, s], rcond=None)[0][0] if column.any() else 0.0
            assert scale == pytest.approx(expected, rel=1e-9)

    def test_simulated_code_equals_explicit_decoding(self, real, result):
        corpus, outcome, act_rs, predicted_rs = parts(real)
        W_dec = real.autoencoder.W_dec.double().numpy()[outcome.latents_s]
        simulated = outcome.fitted.simulations(corpus, corpus.cut, corpus.n_rows, predicted_rs[corpus.cut :])
        part = act_rs[corpus.cut :] @ W_dec
        for name, simulated_rs in simulated.items():
            error = np.square(part - simulated_rs @ W_dec).sum() / np.square(part - part.mean(0)).sum()
            assert value_of(result, "explained_code_nmse", name)["value"] == pytest.approx(error, rel=1e-9)

    def test_baselines_are_means_after_tokens(self, real):
        corpus, outcome, act_rs, _ = parts(real)
        build, scored = range(corpus.cut), range(corpus.cut, corpus.n_rows)

        def key(row, tokens):
            return (None, *corpus.tokens(row))[-tokens:]

        def mean_after(row):
            for tokens in (2, 1):
                same = [r for r in build if key(r, tokens) == key(row, tokens)]
                if same:
                    return act_rs[same].mean(0)
            return act_rs[: corpus.cut].mean(0)

        found = outcome.fitted.bigram.predict(corpus, corpus.cut, corpus.n_rows)
        assert found == pytest.approx(np.stack([mean_after(row) for row in scored]))

    def test_the_counts_are_those_of_the_density_metric(self, real, result):
        expected = METRICS["density"].run(real).latent_stats.set_index("latent").loc[result.latent_stats["latent"]]
        for column in ("count", "density", "mean_act", "max_act"):
            assert result.latent_stats[column].to_numpy() == pytest.approx(expected[column].to_numpy(), rel=1e-6)


class TestSample:
    def test_examples_are_the_strongest_and_others(self, real):
        corpus = Corpus.of(real.evaluation_set)
        latents_s = np.argsort(-sampling.counts_of(real.codes, corpus.cut))[:5]
        act_rs = real.codes.codes(0, corpus.cut).dense(real.codes.n).double().numpy()[:, latents_s]
        examples = sampling.choose_examples(real.codes, corpus, latents_s, 8, seed=0)
        for slot in range(5):
            own = [example for example in examples if example.slot == slot]
            values = sorted((example.value for example in own), reverse=True)
            assert len(own) == 8 and values[:4] == sorted(act_rs[:, slot], reverse=True)[:4]
            assert len({(example.tokens, example.value) for example in own}) > 6
            assert all(example.value in act_rs[:, slot] for example in own)
        others = sampling.choose_examples(real.codes, corpus, latents_s, 8, seed=1)
        assert {e.tokens for e in examples} != {e.tokens for e in others}

    def test_both_sides_have_whole_documents(self, evaluation_set):
        corpus = Corpus.of(evaluation_set)
        assert 0.4 < corpus.cut / corpus.n_rows < 0.6
        assert not set(corpus.unit_r[: corpus.cut]) & set(corpus.unit_r[corpus.cut :])
        ids = evaluation_set.ids(0, evaluation_set.n_contexts)[evaluation_set.mask(0, evaluation_set.n_contexts)]
        assert corpus.last(slice(0, corpus.n_rows)).tolist() == ids.tolist()
        assert [corpus.tokens(row)[-1] for row in range(corpus.n_rows)] == ids.tolist()

    def test_fewer_latents_and_examples_can_be_asked_for(self, real):
        few = METRIC.run(replace(real, parameters={"latents": 5, "examples": 2}))
        assert len(few.latent_stats) == few.facts["sampled_latents"] == 5
        assert few.facts["examples"] <= 10


class TestResults:
    def test_every_figure_has_its_interval_and_units(self, result):
        rows = result.metrics
        assert (rows["status"] == "ok").all() and rows["value"].notna().all()
        measured = rows[rows["metric"] != "n2g_explainable"]
        assert (measured["ci_lo"] <= measured["value"]).all() and (measured["value"] <= measured["ci_hi"]).all()
        kinds = dict(zip(rows["variant"], rows["unit_kind"], strict=True))
        assert kinds["pooled"] == kinds["n2g"] == "document" and kinds["latent_mean"] == "latent"
        assert set(result.unit_stats["variant"]) == {"pooled", "n2g", "unigram", "bigram"}
        explainable = value_of(result, "n2g_explainable")
        assert explainable["n_units"] == 48 and (explainable["value"] == 1 or "fewer than" in explainable["reason"])

    def test_blocks_and_groups_change_nothing(self, real, result, monkeypatch):
        monkeypatch.setattr(sampling, "BLOCK_ROWS", 13)
        monkeypatch.setattr(asking, "TOKENS_AT_ONCE", 40)
        monkeypatch.setattr(patterns, "EXAMPLES_AT_ONCE", 50)
        again = METRIC.run(real)
        assert again.metrics["value"].to_numpy() == pytest.approx(result.metrics["value"].to_numpy(), rel=1e-6)
        pd.testing.assert_frame_equal(again.latent_stats, result.latent_stats, rtol=1e-6)

    def test_company_changes_nothing(self, real, result, evaluation_set, subject, tmp_path):
        other = make_inputs(
            autoencoder("relu", n=48, k=None, seed=1), evaluation_set, tmp_path / "codes", subject=subject,
            sae_id="b" * 64, parameters={"padding_id": 3},
        )  # fmt: skip
        together = METRIC.run_many([other, real])
        pd.testing.assert_frame_equal(together[1].metrics, result.metrics, check_exact=True)
        assert together[1].facts == result.facts and together[0].facts["padding_id"] == 3
        assert (together[0].metrics["status"] == "ok").all()

    def test_a_latent_has_one_row_in_the_table(self, real, result, tmp_path):
        artefacts = []
        density = METRICS["density"].run(real)
        # as it was published before there were the columns of explanations
        before = density.latent_stats.drop(columns=["n2g_precision", "n2g_recall", "n2g_f1"])
        density = replace(density, latent_stats=before)
        for name, found in (("density", density), ("explanations", result)):
            with open_draft(tmp_path / name) as draft:
                artefacts.append(draft.publish(write_metric(draft, found)))
        for order in (artefacts, artefacts[::-1]):
            table = build_table(order)["latent_stats"].set_index("latent")
            assert len(table) == 48 and table["density"].notna().all()
            explained = result.latent_stats.set_index("latent")
            for column in ("n2g_precision", "n2g_recall", "n2g_f1"):
                pd.testing.assert_series_equal(table.loc[explained.index, column], explained[column])
            assert table["n2g_f1"].notna().sum() == explained["n2g_f1"].notna().sum()


class TestNothingToExplain:
    def test_no_latent_fires(self, evaluation_set, subject, tmp_path):
        silent = constant_autoencoder(torch.zeros(evaluation_set.d))
        result = METRIC.run(make_inputs(silent, evaluation_set, tmp_path / "codes", subject=subject))
        assert (result.metrics["metric"] != "n2g_explainable").sum() == 12
        missing = result.metrics[result.metrics["value"].isna()]
        assert len(missing) == 12 and set(missing["status"]) == {"na"}
        assert missing["reason"].str.contains("raise evaluation.tokens").all()
        assert value_of(result, "n2g_explainable")["value"] == 0
        assert result.latent_stats.empty

    def test_one_document(self, tmp_path):
        inputs = planted([PLANTED["single"]], tmp_path / "codes")
        inputs.evaluation_set.document[:] = 4
        result = METRIC.run(inputs)
        assert value_of(result, "n2g_f1", "pooled")["status"] == "na"
        assert "two held-out documents" in value_of(result, "n2g_f1", "pooled")["reason"]

    def test_a_latent_that_is_silent_on_one_side(self, tmp_path):
        """Nothing to recall: no recall, but what is foretold in vain has precision 0."""
        inputs = planted([PLANTED["single"], PLANTED["bigram"]], tmp_path / "codes")
        first = inputs.evaluation_set.ids_cl[0].tolist()
        early = {tuple(ids) for ids in inputs.evaluation_set.ids_cl[:30].tolist()}
        detectors = (PLANTED["single"], lambda ids, i: ids[i] == 2 and (tuple(ids) in early or len(ids) < len(first)))
        inputs.evaluation_set.detectors = detectors
        again = make_inputs(
            inputs.autoencoder, inputs.evaluation_set, tmp_path / "again", subject=PlantedSubject(detectors)
        )
        stats = METRIC.run(again).latent_stats.set_index("latent")
        assert stats.loc[1, "n2g_precision"] == 0 and np.isnan(stats.loc[1, "n2g_recall"])
        assert stats.loc[1, "n2g_f1"] == 0 and stats.loc[0, "n2g_f1"] == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"latents": 0}, "latents takes a whole number of at least 1, not 0"),
            ({"examples": 1}, "examples takes a whole number of at least 2, not 1"),
            ({"latents": "many"}, "not 'many'"),
            ({"padding_id": -1}, "padding_id takes a token id, not -1"),
            ({"padding_id": True}, "padding_id takes a token id, not True"),
            ({"latent": 3}, "'latent' is unknown; this metric takes latents, examples, padding_id"),
        ],
    )
    def test_bad_parameters(self, parameters, message):
        with pytest.raises(EvaluationError, match=message):
            METRIC.check_parameters(parameters)
        METRIC.check_parameters({"latents": 8, "examples": 4, "padding_id": 0})

    def test_a_padding_token_that_the_subject_lacks(self, real, monkeypatch):
        monkeypatch.setattr(type(real.subject), "run", lambda *_: pytest.fail("work has begun"))
        with pytest.raises(EvaluationError, match="padding_id 80 is beyond the subject's vocabulary of 80"):
            METRIC.run(replace(real, parameters={"padding_id": 80}))

    def test_contexts_that_show_no_padding(self, tmp_path):
        inputs = planted([PLANTED["single"]], tmp_path / "codes")
        inputs.evaluation_set.ids_cl[inputs.evaluation_set.ids_cl == 0] = 1
        inputs.evaluation_set.lengths[:] = inputs.evaluation_set.context
        inputs = make_inputs(inputs.autoencoder, inputs.evaluation_set, tmp_path / "again", subject=inputs.subject)
        with pytest.raises(EvaluationError, match="the padding token is not known"):
            METRIC.run(inputs)
        assert value_of(METRIC.run(replace(inputs, parameters={"padding_id": 0})), "n2g_f1", "pooled")["value"] == 1

    def test_no_subject(self, real):
        with pytest.raises(EvaluationError, match="runs the subject model"):
            METRIC.run(replace(real, subject=None))


def test_the_picture_shows_each_latent_that_has_both_figures(result):
    drawn = metric_figures("explanations", result)["latents"]()
    known = result.latent_stats.dropna(subset=["n2g_precision", "n2g_recall"])
    dots = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in drawn.axes[0].lines}
    assert dots == set(zip(known["n2g_recall"], known["n2g_precision"], strict=True)) and len(known) > 5
    assert len({tuple(line.get_color()) for line in drawn.axes[0].lines}) > 1
    none = replace(result, latent_stats=result.latent_stats.iloc[:0])
    assert not metric_figures("explanations", none)["latents"]().axes
