from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_doubles import (
    CONTEXT,
    SITE,
    MemoryTokens,
    autoencoder,
    identity_autoencoder,
    make_inputs,
    make_tokens,
    open_draft,
    value_of,
)

from sae_pipeline.activations import EvaluationSet, build_evaluation_set
from sae_pipeline.evaluation import METRICS, EvaluationError
from sae_pipeline.evaluation.context_length_runs import drawn, long_contexts, stretches

METRIC = METRICS["context_length"]
STRETCHES = ("0-11", "12-23", "24-47")
METRIC_NAMES = ("nmse_at_positions", "kl_at_positions")


@pytest.fixture(scope="module")
def inputs(subject, evaluation_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return make_inputs(autoencoder(n=48, k=4), evaluation_set, folder / "codes", subject=subject)


def whole_documents(evaluation_set):
    """Number, ids and eligible positions of each document; none of these has more than 4 contexts."""
    for document in np.unique(evaluation_set.document):
        of_document = np.flatnonzero(evaluation_set.document == document)
        a, b = of_document[0], of_document[-1] + 1
        text = np.arange(CONTEXT) < evaluation_set.length[a:b, None]
        yield int(document), evaluation_set.ids(a, b).numpy()[text], evaluation_set.mask(a, b).numpy()[text]


def by_hand(made, subject, evaluation_set):
    """Document, position, squared error, ‖u − ū‖² and KL of every eligible token, each document run on its own."""
    rows = evaluation_set.rows(0, evaluation_set.n_contexts)[0]
    mean_d = made.normaliser.normalise(rows)[0].double().mean(0)
    found = []
    for document, ids_l, mask_l in whole_documents(evaluation_set):
        ids_cl, mask = torch.from_numpy(ids_l)[None], torch.from_numpy(mask_l)
        x = subject.run(ids_cl, [SITE])[SITE][0][mask]
        u, scale = made.normaliser.normalise(x)
        u_hat = made.decode(made.encode(u))
        x_hat = made.normaliser.denormalise(u_hat, scale)
        clean = subject.logits(ids_cl)[0].double().log_softmax(-1)
        with subject.editing(SITE, lambda value, m=mask, to=x_hat: value.masked_scatter(m[None, :, None], to)):
            spliced = subject.logits(ids_cl)[0].double().log_softmax(-1)
        kl = torch.nn.functional.kl_div(spliced, clean, reduction="none", log_target=True).sum(-1)[mask]
        error, centred = (u.double() - u_hat.double()).square().sum(1), (u.double() - mean_d).square().sum(1)
        at = np.flatnonzero(mask_l)
        found += zip([document] * len(at), at, error.tolist(), centred.tolist(), kl.tolist(), strict=True)
    return np.array(found)


def test_figures_are_those_of_whole_documents_run_by_themselves(inputs, subject, evaluation_set):
    result = METRIC.run(inputs)
    document, at, error, centred, kl = by_hand(inputs.autoencoder, subject, evaluation_set).T
    for variant in STRETCHES:
        start, last = map(int, variant.split("-"))
        here = (at >= start) & (at <= last)
        nmse, divergence = (value_of(result, metric, variant) for metric in METRIC_NAMES)
        assert nmse["value"] == pytest.approx(error[here].sum() / centred[here].sum(), rel=1e-5)
        assert divergence["value"] == pytest.approx(kl[here].mean(), rel=1e-4)
        assert nmse["n_units"] == len(np.unique(document[here]))
        assert nmse["ci_lo"] < nmse["value"] < nmse["ci_hi"] and divergence["unit"] == "nats/token"
    curve = result.curves.query("curve == 'kl_by_long_position'").set_index("x")
    for position in (0, 13, 30):
        assert curve.loc[position, "y"] == pytest.approx(kl[at == position].mean(), rel=1e-4)
    assert result.facts["tokens"] == len(at) == evaluation_set.n_rows
    assert result.facts["first_context_max_relative_difference"] < 1e-6


def test_short_variants_are_what_the_other_metrics_find_of_the_same_tokens(inputs):
    stats = METRIC.run(inputs).unit_stats
    short = stats[(stats["metric"] == "nmse_at_positions") & stats["variant"].str.endswith(",short")]
    expected = METRICS["reconstruction"].run(inputs).unit_stats.query("metric == 'nmse' and variant == 'all'")
    expected = expected.set_index("unit_id")
    summed = short.groupby("unit_id")[["num", "den", "n"]].sum()
    for column in ("num", "den"):
        assert summed[column].to_numpy() == pytest.approx(expected.loc[summed.index, column].to_numpy(), rel=1e-6)
    # the first context of a document is the same one in both ways
    first = stats[stats["variant"].str.startswith("0-11")]
    for metric in METRIC_NAMES:
        long, short = (
            first[(first["metric"] == metric) & (first["variant"] == variant)] for variant in ("0-11", "0-11,short")
        )
        assert long["num"].to_numpy() == pytest.approx(short["num"].to_numpy(), rel=1e-4, abs=1e-6)


def test_exact_reconstruction_costs_nothing_at_any_position(subject, evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(identity_autoencoder(), evaluation_set, tmp_path / "codes", subject=subject))
    known = result.metrics[result.metrics["status"] == "ok"]
    assert len(known) == 12 and known["value"].abs().max() < 1e-9


def test_positions_that_cannot_be_had_say_why(inputs):
    result = METRIC.run(inputs)
    for metric in METRIC_NAMES:
        beyond, empty = value_of(result, metric, "64-"), value_of(result, metric, "48-63")
        assert beyond["status"] == empty["status"] == "na"
        assert beyond["reason"] == "the subject has 64 positions"
        assert empty["reason"] == "no position of the evaluation set belongs to the variant"
    fewer = METRIC.run(replace(inputs, parameters={"positions": 30}))
    assert set(fewer.metrics["variant"]) == {
        f"{stretch}{way}" for stretch in ("0-11", "12-23", "24-29") for way in ("", ",short")
    }
    assert value_of(fewer, "nmse_at_positions", "24-29")["status"] == "na"
    assert value_of(fewer, "nmse_at_positions", "12-23")["status"] == "ok"


def test_company_and_parameters_of_others_change_nothing(inputs, evaluation_set, subject, tmp_path):
    other = make_inputs(
        autoencoder(n=96, k=3, seed=4), evaluation_set, tmp_path / "codes", subject=subject, sae_id="b" * 64,
        parameters={"tokens": 60},
    )  # fmt: skip
    together = METRIC.run_many([inputs, other])
    for alone, found in zip((METRIC.run(inputs), METRIC.run(other)), together, strict=True):
        assert found.metrics.equals(alone.metrics) and found.facts == alone.facts
    assert together[1].facts["contexts"] < together[0].facts["contexts"]


def test_a_token_at_the_head_of_every_context_stays_at_the_first_alone(subject, tmp_path):
    tokens = make_tokens()
    contexts = tokens.held_out
    contexts.ids_nl[:, 0] = 3
    with open_draft(tmp_path / "set") as draft:
        build_evaluation_set(subject, MemoryTokens(contexts), SITE, draft, n_tokens=250, micro_batch=4)
        evaluation_set = EvaluationSet.open(draft.publish({}))
    for long in long_contexts(evaluation_set, 64):
        of_document = [ids[:length] for ids, length in zip(
            contexts.ids_nl[long.a : long.b], contexts.lengths[long.a : long.b], strict=True
        )]  # fmt: skip
        assert long.ids_l.tolist() == [*of_document[0], *(id_ for ids in of_document[1:] for id_ in ids[1:])]
    made = autoencoder(n=48, k=4)
    stats = METRIC.run(make_inputs(made, evaluation_set, tmp_path / "codes", subject=subject)).unit_stats
    long, short = (
        stats[(stats["metric"] == "kl_at_positions") & (stats["variant"] == f"0-11{way}")] for way in ("", ",short")
    )
    assert long["num"].to_numpy() == pytest.approx(short["num"].to_numpy(), rel=1e-4, abs=1e-6)


def test_the_evaluation_set_of_another_subject_is_refused(inputs, evaluation_set):
    class Other(EvaluationSet):
        def residuals(self, a, b):
            return super().residuals(a, b).flip(-1)

    other = Other(evaluation_set._source)
    with pytest.raises(EvaluationError, match="make the set again with this subject"):
        METRIC.run(replace(inputs, evaluation_set=other))


@pytest.mark.parametrize(("longest", "most"), [(12, 1), (23, 1), (24, 2), (47, 3), (64, 4)])
def test_contexts_are_joined_within_documents_and_none_is_lost(evaluation_set, longest, most):
    found = list(long_contexts(evaluation_set, longest))
    assert max(long.b - long.a for long in found) == most and max(map(len, found)) <= longest
    assert [long.a for long in found[1:]] == [long.b for long in found[:-1]] and found[0].a == 0
    assert found[-1].b == evaluation_set.n_contexts
    assert all(len(set(evaluation_set.document[long.a : long.b])) == 1 for long in found)
    assert sum(int(long.mask_l.sum()) for long in found) == evaluation_set.n_rows


def test_the_draw_depends_on_the_seed_and_stretches_double(evaluation_set):
    contexts = list(long_contexts(evaluation_set, 64))
    some = drawn(contexts, 60, seed=1)
    assert [long.a for long in some] == sorted(long.a for long in some) == [long.a for long in drawn(contexts, 60, 1)]
    assert sum(map(len, some)) >= 60 > sum(map(len, some)) - 48
    assert any([long.a for long in drawn(contexts, 60, seed)] != [long.a for long in some] for seed in range(2, 6))
    assert drawn(contexts, 10**6, seed=1) == contexts
    assert stretches(64, 500) == [(0, 64), (64, 128), (128, 256), (256, 500)] and stretches(64, 64) == [(0, 64)]
